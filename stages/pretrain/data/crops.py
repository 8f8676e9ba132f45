"""One micro-batch of crops."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from stages.pretrain.data import counter_rng
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.crop_index import CropIndex, Crops
from stages.pretrain.data.index import Pinned
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture, Pieces
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from stages.pretrain.data.tars import Tars, Want
from stages.shards.frames import decode_cqt
from stages.signal.rates import HOP_SAMPLES

FULL_SCALE = 32768.0
UNREADABLE = (OSError, EOFError, RuntimeError)  # RuntimeError: soundfile's
TRIES = 16  # replacements of one sample, before the data as a whole is taken for unreadable

Audio = tuple[Want, int]  # the bytes, and the first sample in them once decoded; -1: they are the samples
Wanted = tuple[Audio, list[Want]]  # of one crop: audio, label columns


@dataclass(frozen=True)
class BatchPlan:
    state: State
    places: np.ndarray  # int64 (B,): in the state's global batch
    crops: Crops
    wants: list[Wanted]
    pieces: Pieces
    donors: list[Audio]  # of each piece


class Reader:
    """Makes micro-batches, in one process. `frames`: model frames of a crop."""

    def __init__(self, pinned: Pinned, data: Data, masking: Masking, mixture: Mixture, frames: int):
        self.pinned, self.data, self.frames = pinned, data, frames
        self.masking, self.mixture, self.places = masking, mixture, CropIndex(pinned, data)
        self.tars = Tars(pinned, data.cache_folder, data.cache_gb)
        self.context_samples = pinned.cqt.context_samples if pinned.cqt else 0
        self._raw = {}  # by clips: micro-batches may differ by one

    def plan(self, state: State, places_B: np.ndarray) -> BatchPlan:
        crops = self.places.crops(state, places_B)
        keys_B = state.keys(counter_rng.MIXTURE, places_B)
        pieces = self.mixture.draw(keys_B, places_B, state.global_batch, self.data.samples)
        donors = self.places.crops(state, pieces.donor)
        donated = self.audio(Crops(donors.row, donors.start + pieces.start), pieces.length)
        return BatchPlan(state, places_B, crops, self.wants(crops), pieces, donated)

    def ahead(self, plan: BatchPlan) -> None:
        wants = [want for audio, labels in plan.wants for want in (audio[0], *labels)]
        self.tars.ahead(wants + [want for want, _ in plan.donors])

    def batch(self, plan: BatchPlan) -> Batch:
        """ValueError when no replacement can be read."""
        state, places_B = plan.state, plan.places

        def another(i: int, attempt: int) -> Crops:
            return self.places.replacement(state, int(places_B[i]), attempt)

        batch, _ = self._read(plan.crops, plan.wants, state.keys(counter_rng.MASK, places_B), another)
        batch.positions = (state.consumed + places_B).tolist()
        masked_BM = batch.mask_BT.numpy().nonzero()[1].reshape(len(places_B), -1)
        batch.masked_BM = torch.from_numpy(masked_BM)
        self._mix(batch.wave_BN.numpy(), plan)
        return batch

    def fixed(self, crops: Crops, numbers_B: np.ndarray, keys_B: np.ndarray, shown_B: np.ndarray) -> Batch:
        """The held-out crops of these numbers, clean. The mask is empty where shown_B is False or another
        crop replaces one that cannot be read: such a row counts for nothing."""

        def another(i: int, attempt: int) -> Crops:
            return crops[[(int(numbers_B[i]) + 1 + attempt) % len(crops.row)]]

        own = crops[numbers_B]
        batch, attempts_B = self._read(own, self.wants(own), keys_B, another)
        batch.mask_BT &= torch.from_numpy(shown_B & (attempts_B == 0))[:, None]
        return batch

    def _read(
        self, crops: Crops, wants: list[Wanted], keys_B: np.ndarray, another: Callable[[int, int], Crops]
    ) -> tuple[Batch, np.ndarray]:
        """The second: how many samples failed for each clip."""
        clips, pinned = len(crops.row), self.pinned
        if clips not in self._raw:
            self._raw[clips] = _Raw(self, clips)  # once: new pages cost as much as reading into them
        raw = self._raw[clips]
        raw.begin()
        row_B, start_B, replaced = crops.row.copy(), crops.start.copy(), []
        attempts_B, pending = np.zeros(clips, dtype=int), list(range(clips))
        while pending:
            left = Crops(row_B[pending], start_B[pending])
            failed = raw.fill(pending, left, self.wants(left) if replaced else wants)
            for i, reason in failed.items():
                replaced.append(f"{pinned.key(row_B[i])}: {reason}")
                if attempts_B[i] == TRIES:
                    raise ValueError(
                        f"data: {TRIES} samples in a row could not be read, last {replaced[-1]}: is the data "
                        "there? `overtone verify` names what is damaged"
                    )
                other = another(i, int(attempts_B[i]))
                row_B[i], start_B[i] = other.row[0], other.start[0]
                attempts_B[i] += 1
            pending = sorted(failed)
        batch = Batch(
            mask_BT=torch.from_numpy(self.masking.draw(keys_B, self.frames)),
            keys=[pinned.key(row) for row in row_B],
            recordings=[pinned.recording(row) for row in row_B],
            replaced=replaced,
            **raw.tensors(),
        )
        return batch, attempts_B

    def _mix(self, wave_BN: np.ndarray, plan: BatchPlan) -> None:
        """A donor that cannot be read adds nothing: its own clip is replaced and counted."""
        pieces, scale = plan.pieces, np.float32(self.mixture.gain / FULL_SCALE)
        for audio, clip, to, length in zip(plan.donors, pieces.clip, pieces.to, pieces.length, strict=True):
            piece = np.empty(length, dtype="<i2")
            try:
                self.wave(audio, piece)
            except UNREADABLE:
                continue
            wave_BN[clip, to : to + length] += piece * scale

    def audio(self, crops: Crops, length_B: np.ndarray | int) -> list[Audio]:
        """`length_B` samples from each crop's start on; a compressed member is wanted whole."""
        pinned = self.pinned
        packed_B = pinned.packed_R[crops.row].astype(np.int64)
        at_B = pinned.audio_R[crops.row] + np.where(packed_B, 0, 2 * crops.start)
        size_B = np.where(packed_B, packed_B, 2 * length_B)
        places = (pinned.shard_R[crops.row], at_B, size_B, np.where(packed_B, crops.start, -1))
        rows = zip(*(values.tolist() for values in places), strict=True)
        return [((0, shard, at, size), first) for shard, at, size, first in rows]

    def wants(self, crops: Crops) -> list[Wanted]:
        found = [(audio, []) for audio in self.audio(crops, self.data.samples)]
        pinned, frames = self.pinned, self.data.samples // HOP_SAMPLES
        columns = [*pinned.codes_RC[crops.row].T, pinned.cqt_R[crops.row]]
        for column, (_, values, dtype) in enumerate(pinned.facts.labels):
            width = values * dtype.itemsize
            at_B = columns[column] + crops.start // HOP_SAMPLES * width
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
        """As `wave`, from sample `first` of a segment (below 0 too), across its recording's neighbouring
        segments; zero outside."""
        pinned = self.pinned
        done = max(0, -int(pinned.start_R[row]) - first)
        while first < 0 and pinned.start_R[row] > 0:
            row -= 1
            first += int(pinned.samples_R[row])
        out_N[:] = 0
        first = max(first, 0)
        while done < len(out_N):
            take = min(len(out_N) - done, int(pinned.samples_R[row]) - first)
            audio = self.audio(Crops(np.array([row]), np.array([first])), take)[0]
            self.wave(audio, out_N[done : done + take])
            done, first, row = done + take, 0, row + 1
            if row == len(pinned.start_R) or pinned.start_R[row] == 0:
                return


class _Raw:
    """The bytes of a micro-batch as stored; used again for the next one."""

    def __init__(self, reader: Reader, clips: int):
        self.reader, self.pinned, samples = reader, reader.pinned, reader.data.samples
        self.wave_BN = np.empty((clips, samples + 2 * reader.context_samples), dtype="<i2")
        shape, labels = (clips, samples // HOP_SAMPLES), self.pinned.facts.labels
        self.stored = [np.empty((*shape, values), dtype) for _, values, dtype in labels]
        self.has_cqt = len(labels) > len(self.pinned.codes)

    def begin(self) -> None:
        """A new float32 (B, L, F), for the batch to keep."""
        self.cqt_BLF = torch.empty(self.stored[-1].shape) if self.has_cqt else None

    def fill(self, clips: list[int], crops: Crops, wants: list[Wanted]) -> dict[int, str]:
        """Returns the clips that failed, and why."""
        reader, failed = self.reader, {}
        for i, row, start, (audio, labels) in zip(clips, crops.row, crops.start, wants, strict=True):
            try:
                if context := reader.context_samples:
                    reader.context(int(row), int(start) - context, self.wave_BN[i])
                else:
                    reader.wave(audio, self.wave_BN[i])
                for values, want in zip(self.stored, labels, strict=True):
                    reader.tars.read(want, memoryview(values[i]).cast("B"))
            except UNREADABLE as error:
                failed[i] = f"{type(error).__name__}: {error}"
        for codes_BLK, column in zip(self.stored, self.pinned.codes, strict=False):
            top_B = codes_BLK.max(axis=(1, 2))
            for i in clips:
                if top_B[i] >= column.size:
                    what = f"{column.name} holds the code {top_B[i]}, its codebooks have {column.size}"
                    failed.setdefault(i, what)
        return self._cqt(clips, crops.row) | failed if self.has_cqt else failed

    def _cqt(self, clips: list[int], row_B: np.ndarray) -> dict[int, str]:
        """Stored frames to float32. A sum shows a NaN or infinity anywhere in it."""
        pinned, stored_BLF, failed = self.pinned, self.stored[-1], {}
        for i, row in zip(clips, row_B, strict=True):
            if stored_BLF.dtype == np.uint8:
                shard = pinned.shard_R[row]
                scale = {"uint8": {"scale": pinned.scale_S[shard], "offset": pinned.offset_S[shard]}}
                self.cqt_BLF[i] = torch.from_numpy(decode_cqt(stored_BLF[i], scale))
            else:  # as decode_cqt, five times as fast (D)
                self.cqt_BLF[i].copy_(torch.from_numpy(stored_BLF[i]))
            if not math.isfinite(self.cqt_BLF[i].sum()):
                failed[i] = f"{pinned.cqt.name} holds NaN or infinite values"
        return failed

    def tensors(self) -> dict[str, torch.Tensor | dict]:
        wave_BN, context = torch.from_numpy(self.wave_BN * np.float32(1 / FULL_SCALE)), None
        if size := self.reader.context_samples:
            wave_BN, context = wave_BN[:, size:-size].clone(), wave_BN
        columns = zip(self.pinned.codes, self.stored, strict=False)
        codes = {column.name: torch.from_numpy(v.astype(np.int64)) for column, v in columns}
        return {"wave_BN": wave_BN, "context_BN": context, "codes": codes, "cqt_BLF": self.cqt_BLF}
