"""Which audio and labels a run is trained on: `data:` of the configuration, and `pin`, which finds them
once."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config import require
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

_IDENTITY = (
    "codes",
    "cqt",
    "crop_s",
    "crop_samples",
    "crops_per_segment",
    "min_segment_s",
    "min_rms_db",
    "max_silence",
    "max_clipping",
    "where",
    "weights",
    "window_shards",
)


@dataclass(frozen=True)
class Data:
    """YAML `data:`. `corpora` are OUT folders of `overtone labels`, local or s3://bucket/prefix."""

    corpora: tuple[str, ...] = ("data/quickstart",)
    weights: tuple[float, ...] = ()  # passes over each corpus in one epoch; unset: 1 for each
    codes: tuple[str, ...] = ()  # columns; unset: the current one of OUT/recipe.yaml
    # column (the current one) | cqt-RECIPE8 | online (from the audio, while training) | none
    cqt: str = "column"
    crop_s: float = 5.0  # M config/pretrain, 95M
    crop_samples: int | None = None  # instead of crop_s; 122,880 for 330M (M)
    crops_per_segment: int | None = None  # an epoch's; unset: as many as fit side by side
    min_segment_s: float = 0.0  # shorter segments are left out; those shorter than a crop always are
    min_rms_db: float | None = None  # filters over OUT/segments.parquet
    max_silence: float | None = None  # share of 10-ms frames below -60 dBFS
    max_clipping: float | None = None  # share of samples at full scale
    # SQL condition over its columns, for example: rms_db > -40 and source_rate_hz >= 44100
    where: str | None = None
    window_shards: int = 64  # samples are shuffled inside so many shards
    valid_crops: int = 256  # held-out crops, at most
    max_bad_share: float = 0.01  # of samples that cannot be read; more stop the run
    workers: int = 2  # processes that read, of each rank; 0 reads in the trainer's own
    prefetch: int = 4  # micro-batches each of them holds ready
    cache: str | None = None  # folder on a local disk; unset: $XDG_CACHE_HOME/overtone or ~/.cache/overtone
    cache_gb: float = 20.0  # of pieces of object stores' files; the oldest go first

    def __post_init__(self):
        require(
            len(self.corpora) > 0,
            "data.corpora",
            list(self.corpora),
            "name at least one OUT of `overtone labels`",
        )
        repeated = len(set(self.corpora)) < len(self.corpora)
        require(
            not repeated,
            "data.corpora",
            list(self.corpora),
            "one stands twice; use data.weights to see it more often",
        )
        require(
            len(self.weights) in (0, len(self.corpora)),
            "data.weights",
            list(self.weights),
            f"expected one number for each of the {len(self.corpora)} corpora",
        )
        require(
            all(w > 0 for w in self.weights), "data.weights", list(self.weights), "expected numbers above 0"
        )
        require(
            self.cqt in ("column", "online", "none") or self.cqt.startswith("cqt-"),
            "data.cqt",
            self.cqt,
            "expected column, online, none or a column's name, cqt-…",
        )
        samples = self.crop_s * RATE_HZ if self.crop_samples is None else self.crop_samples
        field, value = (
            ("data.crop_s", self.crop_s)
            if self.crop_samples is None
            else ("data.crop_samples", self.crop_samples)
        )
        require(
            samples > 0 and abs(samples / HOP_SAMPLES - round(samples / HOP_SAMPLES)) < 1e-9,
            field,
            value,
            f"expected a multiple of {HOP_SAMPLES} samples ({HOP_SAMPLES}/{RATE_HZ} s), so that "
            f"labels are cut exactly",
        )
        require(
            self.crops_per_segment is None or self.crops_per_segment >= 1,
            "data.crops_per_segment",
            self.crops_per_segment,
            "expected at least 1",
        )
        require(
            self.min_segment_s >= 0, "data.min_segment_s", self.min_segment_s, "expected seconds, 0 or more"
        )
        for name in ("max_silence", "max_clipping", "max_bad_share"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"data.{name}", value, "expected a share, 0 to 1")
        require(self.window_shards >= 1, "data.window_shards", self.window_shards, "expected at least 1")
        require(
            self.valid_crops >= 0, "data.valid_crops", self.valid_crops, "expected 0 (no validation) or more"
        )
        require(self.workers >= 0, "data.workers", self.workers, "expected 0 (none) or more")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, "expected at least 1")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "expected above 0")

    @property
    def samples(self) -> int:
        """Samples of a crop, a multiple of 320."""
        return round(self.crop_s * RATE_HZ) if self.crop_samples is None else self.crop_samples

    @property
    def passes(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.corpora)

    @property
    def cache_folder(self) -> Path:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(self.cache) if self.cache else Path(base) / "overtone"

    def identity(self) -> dict[str, Any]:
        """The fields that decide which samples there are and in which order; the others are circumstance."""
        values = {name: getattr(self, name) for name in _IDENTITY}
        values |= {"crop_samples": self.samples, "weights": list(self.passes), "codes": list(self.codes)}
        del values["crop_s"]
        return values
