"""One micro-batch of crops: which bytes, read, checked, replaced where they fail, masked and mixed.

Letters: B clips, N samples at 24 kHz, T model frames, L label frames, K codebooks, F CQT bins, G a global
batch.
"""

import io
import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

from stages.pretrain.data import counter_rng
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.index import Pinned
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture, Pieces
from stages.pretrain.data.order import Epoch
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from stages.pretrain.data.tars import Tars, Want
from stages.shards.frames import decode_cqt
from stages.signal.rates import HOP_SAMPLES

FULL_SCALE = 32768.0
UNREADABLE = (OSError, EOFError, RuntimeError)  # soundfile's errors are RuntimeErrors
# where the bytes are, and the first sample in them once decoded; -1 when they are the samples
Audio = tuple[Want, int]
TRIES = 16  # replacements of one sample, before the data as a whole is taken for unreadable


@dataclass(frozen=True)
class Crops:
    """int64 (B,) each: the segment's row, and the crop's first sample in it, a multiple of 320."""

    row: np.ndarray
    start: np.ndarray


class CropIndex:
    """Where each sample of the order lies. Cheap to make; holds the order of the epochs last asked for."""

    def __init__(self, pinned: Pinned, data: Data):
        self._pinned, self._samples = pinned, data.samples
        self._epochs: OrderedDict[tuple[int, int], Epoch] = OrderedDict()

    def crops(self, state: State, places_B: np.ndarray) -> Crops:
        """Of the samples at these places of the state's global batch."""
        shard_G, number_G = self._epoch(state.seed, state.epoch).take(state.consumed, state.global_batch)
        shard_B, number_B = shard_G[places_B], number_G[places_B]
        keys_B = counter_rng.keys(
            counter_rng.key(counter_rng.CROP, state.seed, state.epoch), state.consumed + places_B
        )
        return self._crops(
            self._pinned.ends_S[shard_B] - self._pinned.crops_S[shard_B] + number_B,
            counter_rng.uniform(keys_B, 0),
        )

    def replacement(self, state: State, place: int, attempt: int) -> Crops:
        """Another sample of the data for one that cannot be read: the same whoever asks."""
        key = np.uint64(
            counter_rng.key(counter_rng.REPLACEMENT, state.seed, state.epoch, state.consumed + place)
        )
        share = counter_rng.uniform(key, 2 * attempt + np.arange(2))
        return self._crops(counter_rng.below(int(self._pinned.ends_S[-1]), share[:1]), share[1:])

    def _epoch(self, seed: int, epoch: int) -> Epoch:
        if (seed, epoch) not in self._epochs:
            self._epochs[seed, epoch] = Epoch(self._pinned.order, seed, epoch)
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[seed, epoch]

    def _crops(self, sample_B: np.ndarray, share_B: np.ndarray) -> Crops:
        """Of samples numbered through all shards. A segment's n crops of one pass share it out: crop j begins
        in the j-th of n equal parts of where one may begin."""
        pinned = self._pinned
        row_B = np.searchsorted(pinned.ends_R, sample_B, side="right")
        count_B = pinned.crops_R[row_B].astype(np.int64)
        part_B = sample_B - (pinned.ends_R[row_B] - count_B)
        starts_B = (pinned.samples_R[row_B].astype(np.int64) - self._samples) // HOP_SAMPLES + 1
        return Crops(row_B, counter_rng.below(starts_B, (part_B + share_B) / count_B) * HOP_SAMPLES)


@dataclass(frozen=True)
class Plan:
    """One micro-batch before it is read: what is wanted of which file."""

    state: State
    places: np.ndarray  # int64 (B,): in the state's global batch
    crops: Crops
    wants: list["Wanted"]
    pieces: Pieces  # of the mixture
    donors: list[Audio]  # of each piece


Wanted = tuple[Audio, list[Want]]  # of one crop: audio, label columns


class Reader:
    """Makes micro-batches; one for each process that reads."""

    def __init__(self, pinned: Pinned, data: Data, masking: Masking, mixture: Mixture, frames: int):
        self.pinned, self.data, self.masking, self.mixture, self.frames = (
            pinned,
            data,
            masking,
            mixture,
            frames,
        )
        self.places = CropIndex(pinned, data)
        self.tars = Tars(pinned, data.cache_folder, data.cache_gb)
        self._stored_cqt = pinned.cqt is not None and pinned.cqt.name != "online"
        self._context = pinned.cqt.context_samples if pinned.cqt else 0
        self._label_bytes = [
            c.codebooks * np.dtype(t).itemsize
            for c, t in zip(pinned.codes, pinned.facts.codes_dtype, strict=True)
        ]
        if self._stored_cqt:
            self._label_bytes.append(pinned.cqt.bins * np.dtype(pinned.cqt.dtype).itemsize)
        self._raw: dict[int, _Raw] = {}  # by clips: micro-batches may differ by one

    def plan(self, state: State, places_B: np.ndarray) -> Plan:
        """The samples at these places of the state's global batch, and the pieces mixed into them."""
        crops = self.places.crops(state, places_B)
        keys_B = counter_rng.keys(
            counter_rng.key(counter_rng.MIXTURE, state.seed, state.epoch), state.consumed + places_B
        )
        pieces = self.mixture.draw(keys_B, places_B, state.global_batch, self.data.samples)
        donors = self.places.crops(state, pieces.donor)
        donated = self.audio(Crops(donors.row, donors.start + pieces.start), pieces.length)
        return Plan(state, places_B, crops, self.wants(crops), pieces, donated)

    def ahead(self, plan: Plan) -> None:
        """Have its bytes fetched meanwhile."""
        self.tars.ahead(
            [want for audio, labels in plan.wants for want in (audio[0], *labels)]
            + [want for want, _ in plan.donors]
        )

    def batch(self, plan: Plan) -> Batch:
        """The planned samples in their order. ValueError when no replacement can be read."""
        state, places_B = plan.state, plan.places
        keys_B = counter_rng.keys(
            counter_rng.key(counter_rng.MASK, state.seed, state.epoch), state.consumed + places_B
        )
        mask_BT = self.masking.draw(keys_B, self.frames)
        batch, _ = self._read(
            plan.crops,
            plan.wants,
            mask_BT,
            lambda i, attempt: self.places.replacement(state, int(places_B[i]), attempt),
        )
        batch.positions = (state.consumed + places_B).tolist()
        self._mix(batch.wave_BN.numpy(), plan)
        return batch

    def fixed(self, crops: Crops, numbers_B: np.ndarray, keys_B: np.ndarray, shown_B: np.ndarray) -> Batch:
        """The held-out crops of these numbers, clean. The mask is empty where shown_B is False or where a
        crop cannot be read and another fills its place: such a row counts for nothing."""

        def another(i: int, attempt: int) -> Crops:
            other = [(int(numbers_B[i]) + 1 + attempt) % len(crops.row)]
            return Crops(crops.row[other], crops.start[other])

        own = Crops(crops.row[numbers_B], crops.start[numbers_B])
        batch, attempts_B = self._read(own, self.wants(own), self.masking.draw(keys_B, self.frames), another)
        batch.mask_BT &= torch.from_numpy(shown_B & (attempts_B == 0))[:, None]
        return batch

    def _read(
        self, crops: Crops, wants: list[Wanted], mask_BT: np.ndarray, replacement
    ) -> tuple[Batch, np.ndarray]:
        """The batch, and for each clip how many samples failed in its place."""
        clips = len(crops.row)
        if clips not in self._raw:
            self._raw[clips] = _Raw(self, clips)  # once: new pages cost as much as reading into them
        raw, exact_BLF = self._raw[clips], self._raw[clips].new_cqt()
        row_B, start_B, replaced, attempt_B = (
            crops.row.copy(),
            crops.start.copy(),
            [],
            np.zeros(len(crops.row), dtype=int),
        )
        pending = list(range(len(row_B)))
        while pending:
            left = Crops(row_B[pending], start_B[pending])
            failed = raw.fill(pending, left, self.wants(left) if attempt_B.any() else wants, exact_BLF)
            for i, reason in failed.items():
                replaced.append(f"{self.pinned.key(row_B[i])}: {reason}")
                if attempt_B[i] == TRIES:
                    raise ValueError(
                        f"data: {TRIES} samples in a row could not be read, last {replaced[-1]}: is the data "
                        "there? `overtone verify` names what is damaged"
                    )
                other = replacement(i, int(attempt_B[i]))
                row_B[i], start_B[i] = other.row[0], other.start[0]
                attempt_B[i] += 1
            pending = sorted(failed)
        keys = [self.pinned.key(row) for row in row_B]
        recordings = [key.rpartition("-")[0] for key in keys]
        batch = Batch(
            mask_BT=torch.from_numpy(mask_BT),
            cqt_BLF=exact_BLF,
            **raw.tensors(),
            keys=keys,
            recordings=recordings,
            replaced=replaced,
        )
        return batch, attempt_B

    def _mix(self, wave_BN: np.ndarray, plan: Plan) -> None:
        """Add the pieces. A donor that cannot be read adds nothing: whoever owns it replaces and counts
        it."""
        pieces, scale = plan.pieces, np.float32(self.mixture.gain / FULL_SCALE)
        for audio, clip, to, length in zip(plan.donors, pieces.clip, pieces.to, pieces.length, strict=True):
            piece = np.empty(length, dtype="<i2")
            try:
                self.wave(audio, piece)
            except UNREADABLE:
                continue
            wave_BN[clip, to : to + length] += piece * scale

    def audio(self, crops: Crops, length_B: np.ndarray) -> list[Audio]:
        """Where `length_B` samples from each crop's start on are; a compressed member is wanted whole."""
        packed_B = self.pinned.packed_R[crops.row].astype(np.int64)
        at_B = self.pinned.audio_R[crops.row] + np.where(packed_B, 0, 2 * crops.start)
        size_B = np.where(packed_B, packed_B, 2 * length_B)
        first_B = np.where(packed_B, crops.start, -1)
        places = zip(
            self.pinned.shard_R[crops.row].tolist(),
            at_B.tolist(),
            size_B.tolist(),
            first_B.tolist(),
            strict=True,
        )
        return [((0, shard, at, size), first) for shard, at, size, first in places]

    def wants(self, crops: Crops) -> list[Wanted]:
        """For each crop its audio, and the frames of every label column."""
        found: list[Wanted] = [
            (audio, []) for audio in self.audio(crops, np.full(len(crops.row), self.data.samples))
        ]
        frame_B, frames = crops.start // HOP_SAMPLES, self.data.samples // HOP_SAMPLES
        for column, width in enumerate(self._label_bytes):
            coded = column < len(self.pinned.codes)
            at_B = (
                self.pinned.codes_RC[crops.row, column] if coded else self.pinned.cqt_R[crops.row]
            ) + frame_B * width
            for (audio, labels), at in zip(found, at_B.tolist(), strict=True):
                labels.append((1 + column, audio[0][1], at, frames * width))
        return found

    def wave(self, audio: Audio, out_N: np.ndarray) -> None:
        """int16 samples of one segment, into out_N (contiguous)."""
        want, first = audio
        if first < 0:
            self.tars.read(want, memoryview(out_N).cast("B"))
            return
        import soundfile  # only for corpora stored as flac

        member = bytearray(want[3])
        self.tars.read(want, memoryview(member))
        with soundfile.SoundFile(io.BytesIO(member)) as file:
            file.seek(first)
            if len(file.read(len(out_N), dtype="int16", out=out_N)) != len(out_N):
                raise EOFError(f"flac member ends before sample {first + len(out_N)}")

    def context(self, row: int, first: int, out_N: np.ndarray) -> None:
        """As `wave`, but across the neighbouring segments of the recording; zero outside the recording.
        `first` may be below 0."""
        position = int(self.pinned.start_R[row]) + first
        while first < 0 and self.pinned.start_R[row] > 0:
            row -= 1
            first += int(self.pinned.samples_R[row])
        done = max(0, -position)
        out_N[:done] = 0
        first = max(first, 0)
        while done < len(out_N):
            take = min(len(out_N) - done, int(self.pinned.samples_R[row]) - first)
            audio = self.audio(Crops(np.array([row]), np.array([first])), np.array([take]))[0]
            self.wave(audio, out_N[done : done + take])
            done, first, row = done + take, 0, row + 1
            if row == len(self.pinned.start_R) or self.pinned.start_R[row] == 0:
                out_N[done:] = 0
                return


class _Raw:
    """The bytes of a micro-batch as stored, and their checks. Used again for the next micro-batch."""

    def __init__(self, reader: Reader, clips: int):
        self.reader, pinned, samples = reader, reader.pinned, reader.data.samples
        labels, self.context = samples // HOP_SAMPLES, reader._context
        self.wave_BN = np.empty((clips, samples + 2 * self.context), dtype="<i2")
        self.stored = [
            np.empty((clips, labels, c.codebooks), dtype=t)
            for c, t in zip(pinned.codes, pinned.facts.codes_dtype, strict=True)
        ]
        if reader._stored_cqt:
            self.stored.append(np.empty((clips, labels, pinned.cqt.bins), dtype=pinned.cqt.dtype))

    def new_cqt(self) -> torch.Tensor | None:
        """float32 (B, L, F), for the batch to keep."""
        return torch.empty(self.stored[-1].shape) if self.reader._stored_cqt else None

    def fill(
        self, clips: list[int], crops: Crops, wants: list[Wanted], exact_BLF: torch.Tensor | None
    ) -> dict[int, str]:
        """Read these clips; returns those that failed, and why."""
        failed: dict[int, str] = {}
        for i, row, start, wanted in zip(clips, crops.row, crops.start, wants, strict=True):
            try:
                self._clip(i, int(row), int(start), *wanted)
            except UNREADABLE as error:
                failed[i] = f"{type(error).__name__}: {error}"
        for codes_BLK, column in zip(self.stored, self.reader.pinned.codes, strict=False):
            top_B = codes_BLK.max(axis=(1, 2))
            for i in clips:
                if top_B[i] >= column.size:
                    failed.setdefault(
                        i, f"{column.name} holds the code {top_B[i]}, its codebooks have {column.size}"
                    )
        if exact_BLF is not None:
            failed = self._cqt(clips, crops.row, exact_BLF) | failed
        return failed

    def _clip(self, i: int, row: int, start: int, audio: Audio, labels: list[Want]) -> None:
        reader = self.reader
        if self.context:
            reader.context(row, start - self.context, self.wave_BN[i])
        else:
            reader.wave(audio, self.wave_BN[i])
        for values, want in zip(self.stored, labels, strict=True):
            reader.tars.read(want, memoryview(values[i]).cast("B"))

    def _cqt(self, clips: list[int], row_B: np.ndarray, exact_BLF: torch.Tensor) -> dict[int, str]:
        """Stored frames to float32. A sum tells of a NaN or infinity anywhere in it."""
        pinned, stored_BLF, failed = self.reader.pinned, self.stored[-1], {}
        for i, row in zip(clips, row_B, strict=True):
            if stored_BLF.dtype == np.uint8:
                shard = pinned.shard_R[row]
                scale = {"uint8": {"scale": pinned.scale_S[shard], "offset": pinned.offset_S[shard]}}
                exact_BLF[i] = torch.from_numpy(decode_cqt(stored_BLF[i], scale))
            else:  # as decode_cqt, five times as fast (D)
                exact_BLF[i].copy_(torch.from_numpy(stored_BLF[i]))
            if not math.isfinite(exact_BLF[i].sum()):
                failed[i] = f"{pinned.cqt.name} holds NaN or infinite values"
        return failed

    def tensors(self) -> dict:
        """The waves and codes of a Batch, before any mixture."""
        pinned, scale = self.reader.pinned, np.float32(1 / FULL_SCALE)
        whole_BN = torch.from_numpy(self.wave_BN * scale)
        codes = {
            c.name: torch.from_numpy(v.astype(np.int64))
            for c, v in zip(pinned.codes, self.stored, strict=False)
        }
        if not self.context:
            return {"wave_BN": whole_BN, "codes": codes}
        return {
            "wave_BN": whole_BN[:, self.context : -self.context].clone(),
            "context_BN": whole_BN,
            "codes": codes,
        }
