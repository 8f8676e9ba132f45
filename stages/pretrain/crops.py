"""One micro-batch of crops: which bytes, read, checked, replaced where they fail, masked and mixed.

Letters: B clips, N samples at 24 kHz, T model frames, L label frames, K codebooks, F CQT bins, G a global batch.
"""

import io
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

from stages.pretrain import draws
from stages.pretrain.batch import Batch
from stages.pretrain.data import HOP_SAMPLES, Data
from stages.pretrain.masking import Masking
from stages.pretrain.mixture import Mixture, Pieces
from stages.pretrain.order import Epoch
from stages.pretrain.pinned import Pinned
from stages.pretrain.state import State
from stages.pretrain.tars import Tars, Want
from stages.shards.frames import decode_cqt

FULL_SCALE = 32768.0
TRIES = 16  # replacements of one sample, before the data as a whole is taken for unreadable


@dataclass(frozen=True)
class Crops:
    """int64 (B,) each: the segment's row, and the crop's first sample in it, a multiple of 320."""

    row: np.ndarray
    start: np.ndarray


class Places:
    """Where each sample of the order lies. Cheap to make; holds the order of the epochs last asked for."""

    def __init__(self, pinned: Pinned, data: Data):
        self._pinned, self._samples = pinned, data.samples
        self._epochs: OrderedDict[tuple[int, int], Epoch] = OrderedDict()
        self._ends: OrderedDict[int, np.ndarray] = OrderedDict()  # of a shard's segments, in samples of a pass

    def crops(self, state: State, places_B: np.ndarray) -> Crops:
        """Of the samples at these places of the state's global batch."""
        shard_G, number_G = self._epoch(state.seed, state.epoch).take(state.consumed, state.global_batch)
        keys_B = draws.keys(draws.key(draws.CROP, state.seed, state.epoch), state.consumed + places_B)
        return self._crops(shard_G[places_B], number_G[places_B], draws.uniform(keys_B, 0))

    def replacement(self, state: State, place: int, attempt: int) -> Crops:
        """Another sample of the data for one that cannot be read: the same whoever asks."""
        key = np.uint64(draws.key(draws.REPLACEMENT, state.seed, state.epoch, state.consumed + place))
        ends_S = np.cumsum(self._pinned.crops_S)
        sample = draws.below(int(ends_S[-1]), draws.uniform(key, np.array([2 * attempt])))
        shard = np.searchsorted(ends_S, sample, side="right")
        number = sample - ends_S[shard] + self._pinned.crops_S[shard]
        return self._crops(shard, number, draws.uniform(key, np.array([2 * attempt + 1])))

    def _epoch(self, seed: int, epoch: int) -> Epoch:
        if (seed, epoch) not in self._epochs:
            self._epochs[seed, epoch] = Epoch(self._pinned.order, seed, epoch)
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[seed, epoch]

    def _crops(self, shard_B: np.ndarray, number_B: np.ndarray, share_B: np.ndarray) -> Crops:
        """A segment's n crops of one pass share it out: crop j begins in the j-th of n equal parts of where one may."""
        row_B, part_B = np.empty_like(number_B), np.empty_like(number_B)
        for shard in np.unique(shard_B):
            own, ends = shard_B == shard, self._segment_ends(int(shard))
            local = np.searchsorted(ends, number_B[own], side="right")
            row_B[own] = self._pinned.row_S[shard] + local
            part_B[own] = number_B[own] - np.where(local > 0, ends[local - 1], 0)
        count_B = self._pinned.crops_R[row_B].astype(np.int64)
        starts_B = (self._pinned.samples_R[row_B].astype(np.int64) - self._samples) // HOP_SAMPLES + 1
        return Crops(row_B, draws.below(starts_B, (part_B + share_B) / count_B) * HOP_SAMPLES)

    def _segment_ends(self, shard: int) -> np.ndarray:
        if shard not in self._ends:
            first, last = self._pinned.row_S[shard : shard + 2]
            self._ends[shard] = np.cumsum(self._pinned.crops_R[first:last], dtype=np.int64)
            if len(self._ends) > 512:
                self._ends.popitem(last=False)
        return self._ends[shard]


class Reader:
    """Makes micro-batches; one for each process that reads."""

    def __init__(self, pinned: Pinned, data: Data, masking: Masking, mixture: Mixture, frames: int):
        self.pinned, self.data, self.masking, self.mixture, self.frames = pinned, data, masking, mixture, frames
        self.places = Places(pinned, data)
        self.tars = Tars(pinned, data.cache_folder, data.cache_gb)
        self._stored_cqt = pinned.cqt is not None and pinned.cqt.name != "online"
        self._context = pinned.cqt.context_samples if pinned.cqt else 0

    def ahead(self, state: State, places_B: np.ndarray) -> None:
        """Have the bytes of these samples fetched meanwhile."""
        crops = self.places.crops(state, places_B)
        self.tars.ahead([w for row, start in zip(crops.row, crops.start, strict=True) for w in self._wants(int(row), int(start))])

    def batch(self, state: State, places_B: np.ndarray) -> Batch:
        """The samples at these places of the state's global batch, in their order. ValueError when no replacement can be read."""
        crops = self.places.crops(state, places_B)
        keys_B = draws.keys(draws.key(draws.MASK, state.seed, state.epoch), state.consumed + places_B)
        mask_BT = self.masking.draw(keys_B, self.frames)
        batch = self._read(crops, mask_BT, lambda i, attempt: self.places.replacement(state, int(places_B[i]), attempt))
        batch.positions = (state.consumed + places_B).tolist()
        keys_B = draws.keys(draws.key(draws.MIXTURE, state.seed, state.epoch), state.consumed + places_B)
        self._mix(batch.wave_BN.numpy(), state, self.mixture.draw(keys_B, places_B, state.global_batch, self.data.samples))
        return batch

    def fixed(self, crops: Crops, keys_B: np.ndarray, shown_B: np.ndarray) -> Batch:
        """Held-out crops, clean; where shown_B is False the mask is empty, so that the row counts for nothing."""
        def nothing_else(i: int, attempt: int) -> Crops:
            other = (i + attempt) % len(crops.row)
            return Crops(crops.row[other : other + 1], crops.start[other : other + 1])

        return self._read(crops, self.masking.draw(keys_B, self.frames) & shown_B[:, None], nothing_else)

    def _read(self, crops: Crops, mask_BT: np.ndarray, replacement) -> Batch:
        raw = _Raw(self, len(crops.row))
        row_B, start_B, replaced, attempt_B = crops.row.copy(), crops.start.copy(), [], np.zeros(len(crops.row), dtype=int)
        pending = list(range(len(row_B)))
        while pending:
            failed = raw.fill(pending, row_B, start_B)
            for i, reason in failed.items():
                replaced.append(f"{self.pinned.key(row_B[i])}: {reason}")
                if attempt_B[i] == TRIES:
                    raise ValueError(f"data: {TRIES} samples in a row could not be read, last {replaced[-1]}: is the data there? "
                                     f"`overtone verify` names what is damaged")
                other = replacement(i, int(attempt_B[i]))
                row_B[i], start_B[i] = other.row[0], other.start[0]
                attempt_B[i] += 1
            pending = sorted(failed)
        keys = [self.pinned.key(row) for row in row_B]
        return Batch(mask_BT=torch.from_numpy(mask_BT), **raw.tensors(), keys=keys, recordings=[k.rpartition("-")[0] for k in keys],
                     positions=list(range(len(keys))), replaced=replaced)

    def _mix(self, wave_BN: np.ndarray, state: State, pieces: Pieces) -> None:
        """Add the pieces. A donor that cannot be read adds nothing: whoever owns it replaces and counts it."""
        if not len(pieces):
            return
        donors = self.places.crops(state, pieces.donor)
        for i, (clip, to, length) in enumerate(zip(pieces.clip, pieces.to, pieces.length, strict=True)):
            piece = np.empty(length, dtype="<i2")
            try:
                self.wave(int(donors.row[i]), int(donors.start[i] + pieces.start[i]), piece)
            except (OSError, EOFError, RuntimeError):
                continue
            wave_BN[clip, to : to + length] += piece * np.float32(self.mixture.gain / FULL_SCALE)

    def wave(self, row: int, first: int, out_N: np.ndarray) -> None:
        """int16 samples of one segment from `first` on, into out_N (contiguous)."""
        shard, at, packed = int(self.pinned.shard_R[row]), int(self.pinned.audio_R[row]), int(self.pinned.packed_R[row])
        if not packed:
            self.tars.read((0, shard, at + 2 * first, out_N.nbytes), memoryview(out_N).cast("B"))
            return
        import soundfile  # only for corpora stored as flac

        member = bytearray(packed)
        self.tars.read((0, shard, at, packed), memoryview(member))
        with soundfile.SoundFile(io.BytesIO(member)) as file:
            file.seek(first)
            if len(file.read(len(out_N), dtype="int16", out=out_N)) != len(out_N):
                raise EOFError(f"flac member ends before sample {first + len(out_N)}")

    def context(self, row: int, first: int, out_N: np.ndarray) -> None:
        """As `wave`, but across the neighbouring segments of the recording; zero outside the recording. `first` may be below 0."""
        position = int(self.pinned.start_R[row]) + first
        while first < 0 and self.pinned.start_R[row] > 0:
            row -= 1
            first += int(self.pinned.samples_R[row])
        done = max(0, -position)
        out_N[:done] = 0
        first = max(first, 0)
        while done < len(out_N):
            take = min(len(out_N) - done, int(self.pinned.samples_R[row]) - first)
            self.wave(row, first, out_N[done : done + take])
            done, first, row = done + take, 0, row + 1
            if row == len(self.pinned.start_R) or self.pinned.start_R[row] == 0:
                out_N[done:] = 0
                return

    def _wants(self, row: int, start: int) -> list[Want]:
        pinned, shard, samples, frame = self.pinned, int(self.pinned.shard_R[row]), self.data.samples, start // HOP_SAMPLES
        packed, at = int(pinned.packed_R[row]), int(pinned.audio_R[row])
        wants = [(0, shard, at, packed) if packed else (0, shard, at + 2 * start, 2 * samples)]
        widths = [c.codebooks * np.dtype(t).itemsize for c, t in zip(pinned.codes, pinned.facts.codes_dtype, strict=True)]
        ats = [int(pinned.codes_RC[row, c]) for c in range(len(widths))]
        if self._stored_cqt:
            widths.append(pinned.cqt.bins * np.dtype(pinned.cqt.dtype).itemsize)
            ats.append(int(pinned.cqt_R[row]))
        frames = samples // HOP_SAMPLES
        return wants + [(1 + i, shard, place + frame * width, frames * width) for i, (place, width) in enumerate(zip(ats, widths, strict=True))]


class _Raw:
    """The bytes of a micro-batch as stored, and their checks."""

    def __init__(self, reader: Reader, clips: int):
        self.reader, pinned, samples = reader, reader.pinned, reader.data.samples
        labels, self.context = samples // HOP_SAMPLES, reader._context
        self.wave_BN = np.empty((clips, samples + 2 * self.context), dtype="<i2")
        self.codes = [np.empty((clips, labels, c.codebooks), dtype=t) for c, t in zip(pinned.codes, pinned.facts.codes_dtype, strict=True)]
        self.cqt_BLF = np.empty((clips, labels, pinned.cqt.bins), dtype=pinned.cqt.dtype) if reader._stored_cqt else None
        self.exact_BLF = torch.empty(self.cqt_BLF.shape) if reader._stored_cqt else None

    def fill(self, clips: list[int], row_B: np.ndarray, start_B: np.ndarray) -> dict[int, str]:
        """Read these clips; returns those that failed, and why."""
        failed: dict[int, str] = {}
        for i in clips:
            try:
                self._clip(i, int(row_B[i]), int(start_B[i]))
            except (OSError, EOFError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
                failed[i] = f"{type(error).__name__}: {error}"
        for codes_BLK, column in zip(self.codes, self.reader.pinned.codes, strict=True):
            top_B = codes_BLK[clips].max(axis=(1, 2)) if len(clips) < len(codes_BLK) else codes_BLK.max(axis=(1, 2))
            for i, top in zip(clips, top_B, strict=True):
                if top >= column.size:
                    failed.setdefault(i, f"{column.name} holds the code {top}, its codebooks have {column.size}")
        return failed | {i: why for i, why in self._cqt(clips, row_B).items() if i not in failed}

    def _clip(self, i: int, row: int, start: int) -> None:
        reader = self.reader
        if self.context:
            reader.context(row, start - self.context, self.wave_BN[i])
        else:
            reader.wave(row, start, self.wave_BN[i])
        stored = [*self.codes, *([self.cqt_BLF] if self.cqt_BLF is not None else [])]
        for values, want in zip(stored, reader._wants(row, start)[1:], strict=True):
            reader.tars.read(want, memoryview(values[i]).cast("B"))

    def _cqt(self, clips: list[int], row_B: np.ndarray) -> dict[int, str]:
        """Stored frames to float32. A sum tells of a NaN or infinity anywhere in it."""
        if self.cqt_BLF is None:
            return {}
        pinned = self.reader.pinned
        for i in clips:
            if self.cqt_BLF.dtype == np.uint8:
                shard = pinned.shard_R[row_B[i]]
                scale = {"uint8": {"scale": pinned.scale_S[shard], "offset": pinned.offset_S[shard]}}
                self.exact_BLF[i] = torch.from_numpy(decode_cqt(self.cqt_BLF[i], scale))
            else:  # as decode_cqt, five times as fast (D)
                self.exact_BLF[i].copy_(torch.from_numpy(self.cqt_BLF[i]))
        sums_B = self.exact_BLF.sum((1, 2))
        return {i: f"{pinned.cqt.name} holds NaN or infinite values" for i in clips if not torch.isfinite(sums_B[i])}

    def tensors(self) -> dict:
        """The fields of a Batch, before any mixture."""
        pinned, whole_BN = self.reader.pinned, torch.from_numpy(self.wave_BN).float().div_(FULL_SCALE)
        codes = {c.name: torch.from_numpy(v.astype(np.int64)) for c, v in zip(pinned.codes, self.codes, strict=True)}
        found = {"wave_BN": whole_BN, "codes": codes, "cqt_BLF": self.exact_BLF}
        if self.context:
            found |= {"wave_BN": whole_BN[:, self.context : -self.context].clone(), "context_BN": whole_BN}
        return found
