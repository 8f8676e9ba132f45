"""The cqt stage: constant-Q magnitudes over each uninterrupted recording, cut to its segments.

Writes (T, 336); frame i is centred on sample 320 i of the segment. Each shard's record states how much
precision storing lost."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.config import NUMBER, Count, Positive, check, settings
from stages.label.base import Item, RejectRecording, outcomes, read_checked
from stages.label.statistics.pitch import of_cqt
from stages.shards.column import npy_bytes
from stages.shards.frames import STEPS, decode_cqt, encode_uint8
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-14  # smallest normal float16


@settings
class CqtStage:
    """The constant-Q transform; null: none."""

    fmin_hz: Positive = 32.7  # centre of the lowest bin; M config: nnAudio CQT settings, as the next two
    bins: Count = 336  # in all
    bins_per_octave: Count = 48  # 12: semitones
    # computed at a time, with ±25,230 samples of context
    block_s: Annotated[float, Field(ge=1, le=600), NUMBER] = 120.0
    magnitude: Literal["linear", "log"] = "linear"  # M; log is natural, floored at 1e-6
    # uint8 halves the bytes; its 256 steps suit log, not linear (see docs/benchmarks.md)
    storage: Literal["float16", "uint8"] = "float16"

    name = "cqt"
    version = 1
    writes = "cqt"
    cpu_s = 0.002
    later = ("magnitude", "storage")

    def __post_init__(self):
        top_hz = self.fmin_hz * 2 ** ((self.bins - 1) / self.bins_per_octave)
        lower = f"the top bin is at {top_hz:.0f} Hz, expected below 12,000 Hz; lower bins or fmin_hz"
        check(top_hz < 12_000, self, "bins", lower)

    def open(self, weights: bytes | None, device: str, threads: int) -> "CqtRun":
        from stages.signal.cqt import ConstantQ, CqtSpec
        from stages.signal.tables import table_cache

        spec = CqtSpec(fmin_hz=self.fmin_hz, bins=self.bins, bins_per_octave=self.bins_per_octave)
        return CqtRun(self, ConstantQ(spec, table_cache(), device))


@dataclass
class CqtRun:
    """One worker's transform; after a shard `facts` describe its frames and what storing them lost.

    A uint8 shard is computed twice: first for its least and greatest value, which give its scale. A bound
    known beforehand would leave a quiet shard a few of the 256 steps, and a shard's float32 frames (360 MB an
    hour) do not fit in a worker's memory."""

    stage: CqtStage
    transform: Any
    scaling: dict[str, float] = field(default_factory=dict)  # offset and scale, of uint8
    totals: Counter = field(default_factory=Counter)
    max_abs_error: float = 0.0  # as relative_rms_error in the magnitude's unit (log: nats)

    def __call__(self, waves: Iterable[Any]) -> Iterator[Item]:
        self.scaling, self.totals, self.max_abs_error = {}, Counter(), 0.0
        if self.stage.storage == "uint8":
            waves = list(waves)
            self.scaling = self._scaling(waves)
        yield from outcomes(waves, self._blocks, self._described)

    def facts(self) -> dict:
        stage, totals = self.stage, self.totals
        relative = (totals["lost"] / totals["power"]) ** 0.5 if totals["power"] else 0.0
        errors = {"max_abs_error": round(self.max_abs_error, 9), "relative_rms_error": round(relative, 9)}
        own = self.scaling or {name: totals[name] for name in ("overflow", "subnormal")}  # of float16
        frames = {"bins": stage.bins, "hop_samples": HOP_SAMPLES, "magnitude": stage.magnitude}
        lost = {"values": totals["values"]} | errors | own
        return frames | {"storage": stage.storage, stage.storage: lost}

    def _described(self, exact_TF: np.ndarray, number: int) -> tuple:
        stage = self.stage
        half_TF = np.minimum(exact_TF, FLOAT16_MAX).astype(np.float16)
        stored_TF = encode_uint8(exact_TF, **self.scaling) if self.scaling else half_TF
        error_TF, size_TF = decode_cqt(stored_TF, {"uint8": self.scaling}) - exact_TF, np.abs(exact_TF)
        self.max_abs_error = max(self.max_abs_error, float(np.abs(error_TF).max(initial=0.0)))
        self.totals.update(
            values=exact_TF.size,
            overflow=int((size_TF > FLOAT16_MAX).sum()),
            subnormal=int(((size_TF > 0) & (size_TF < FLOAT16_TINY)).sum()),
            lost=float(np.square(error_TF, dtype=np.float64).sum()),
            power=float(np.square(exact_TF, dtype=np.float64).sum()),
        )
        linear_TF = np.exp(exact_TF) if stage.magnitude == "log" else exact_TF
        stats, sums_2F = of_cqt(exact_TF, linear_TF, stage.fmin_hz, stage.bins_per_octave, number)
        return {"cqt.npy": npy_bytes(stored_TF)}, stats, {"cqt": sums_2F}

    def _scaling(self, waves: list[Any]) -> dict[str, float]:
        """256 even steps from the shard's least value to its greatest, rounded to float32 as when used."""
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for wave in waves:
            try:
                for block_TF in self._blocks(wave):
                    low, high = min(low, block_TF.min()), max(high, block_TF.max())
            except RejectRecording:
                continue  # rejected, with its reason, in the second pass
        if high < low:
            return {"offset": 0.0, "scale": 0.0}
        return {"offset": float(low), "scale": float(np.float32((high - low) / STEPS))}

    def _blocks(self, wave: Any) -> Iterator[np.ndarray]:
        import torch

        from stages.signal.cqt import log_magnitude

        context = self.transform.spec.context_samples
        frames, block_frames = wave.samples // HOP_SAMPLES, int(self.stage.block_s * RATE_HZ / HOP_SAMPLES)
        for first in range(0, frames, block_frames):
            count = min(block_frames, frames - first)
            start, stop = first * HOP_SAMPLES - context, (first + count) * HOP_SAMPLES + context
            block_1N = torch.from_numpy(read_checked(wave, start, stop))[None]
            block_TF = self.transform.frames(block_1N, context, count)[0]
            yield (log_magnitude(block_TF) if self.stage.magnitude == "log" else block_TF).cpu().numpy()
