"""The cqt stage: constant-Q magnitudes over each uninterrupted recording, cut to its segments.

Writes float16 (T, 336), linear magnitude; frame i is centred on sample 320 i of the segment. What
float16 loses is measured and stated in the record.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from stages.label.base import HOP_SAMPLES, Item, Kept, Sample
from stages.label.segments import cut, identity
from stages.shards.column import npy_bytes

FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-14  # smallest normal float16


@dataclass
class StorageError:
    """What storing float32 magnitudes as float16 cost, over one shard."""

    values: int = 0
    overflow: int = 0
    subnormal: int = 0
    max_abs_error: float = 0.0
    sum_squared_error: float = 0.0
    sum_squared: float = 0.0

    def add(self, exact_TF: np.ndarray, stored_TF: np.ndarray) -> None:
        error = stored_TF.astype(np.float32) - exact_TF
        self.values += exact_TF.size
        self.overflow += int((exact_TF > FLOAT16_MAX).sum())
        self.subnormal += int(((exact_TF > 0) & (exact_TF < FLOAT16_TINY)).sum())
        if error.size:
            self.max_abs_error = max(self.max_abs_error, float(np.abs(error).max()))
        self.sum_squared_error += float(np.square(error, dtype=np.float64).sum())
        self.sum_squared += float(np.square(exact_TF, dtype=np.float64).sum())

    def facts(self) -> dict:
        relative = (self.sum_squared_error / self.sum_squared) ** 0.5 if self.sum_squared else 0.0
        return {
            "values": self.values,
            "overflow": self.overflow,
            "subnormal": self.subnormal,
            "max_abs_error": round(self.max_abs_error, 9),
            "relative_rms_error": round(relative, 9),
        }


@dataclass(frozen=True)
class Cqt:
    fmin_hz: float = 32.7  # M config: nnAudio CQT settings
    bins: int = 336
    bins_per_octave: int = 48
    block_s: float = 120.0  # computed at a time, with ±25,230 samples of context

    name: ClassVar[str] = "cqt"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("audio",)
    writes: ClassVar[str] = "cqt"
    cpu_s: ClassVar[float] = 0.002

    def __post_init__(self):
        if not 1 <= self.block_s <= 600:
            raise ValueError(f"recipe.cqt.block_s is {self.block_s}: it must lie between 1 and 600 seconds")
        for name in ("fmin_hz", "bins", "bins_per_octave"):
            if not getattr(self, name) > 0:
                raise ValueError(f"recipe.cqt.{name} is {getattr(self, name)}: it must be above 0")
        top_hz = self.fmin_hz * 2 ** ((self.bins - 1) / self.bins_per_octave)
        if top_hz >= 12_000:
            raise ValueError(f"recipe.cqt: the top bin lies at {top_hz:.0f} Hz, above 12,000 Hz; lower bins or fmin_hz")

    def open(self, weights: bytes | None, device: str, threads: int) -> "CqtRun":
        from stages.signal.cqt import Cqt as Transform
        from stages.signal.cqt import CqtSpec

        spec = CqtSpec(fmin_hz=self.fmin_hz, bins=self.bins, bins_per_octave=self.bins_per_octave)
        return CqtRun(Transform(spec, cache_dir=table_cache(), device=device), int(self.block_s * 75))


def table_cache():
    import os
    from pathlib import Path

    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overtone"


@dataclass
class CqtRun:
    """One worker's transform; `facts` after a shard state its storage error."""

    transform: Any
    block_frames: int
    error: StorageError = field(default_factory=StorageError)

    def __call__(self, waves: Iterable[Any]) -> Iterator[Item]:
        self.error = StorageError()
        for wave in waves:
            for segment, exact_TF in cut(self._blocks(wave), wave.segments):
                stored_TF = np.minimum(exact_TF, FLOAT16_MAX).astype(np.float16)
                self.error.add(exact_TF, stored_TF)
                mean = float(exact_TF.mean(dtype=np.float64)) if exact_TF.size else 0.0
                stats = {"cqt_max": float(exact_TF.max(initial=0.0)), "cqt_mean": mean}
                yield Sample(segment["key"], {"cqt.npy": npy_bytes(stored_TF)}, identity(segment), stats)
            yield Kept(wave.recording)

    def facts(self) -> dict:
        return {"float16": self.error.facts()}

    def _blocks(self, wave: Any) -> Iterator[np.ndarray]:
        import torch

        context = self.transform.spec.context_samples
        frames = wave.samples // HOP_SAMPLES
        for first in range(0, frames, self.block_frames):
            count = min(self.block_frames, frames - first)
            start = first * HOP_SAMPLES - context
            stop = (first + count) * HOP_SAMPLES + context
            block_1N = torch.from_numpy(wave.read(start, stop))[None]
            yield self.transform.frames(block_1N, context, count)[0].cpu().numpy()
