"""The YAML section `data:`."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.config import (
    Count,
    Natural,
    NotNegative,
    Number,
    OneOrMore,
    Positive,
    Several,
    Share,
    Whole,
    check,
    remedy,
    settings,
)
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

_CORPORA = "name at least one OUT of `overtone labels`"
_CQT = "expected column, online, none or a column's name, cqt-…"
# Besides the crop's length, columns of codes and passes; the other fields are circumstance.
_IDENTITY = "cqt crops_per_segment min_segment_s min_rms_db max_silence max_clipping where window_shards"


@settings
class Data:
    """Which audio and labels a run is trained on."""

    # OUT folders, local or s3://bucket/prefix
    corpora: Annotated[OneOrMore[str], remedy(_CORPORA)] = ("data/quickstart",)
    passes: Several[Positive] = ()  # over each corpus in one epoch; unset: 1 for each
    codes: Several[str] = ()  # columns; unset: the current one of OUT/recipe.yaml
    # column (the current one) | cqt-RECIPE8 | online (from the audio, while training) | none
    cqt: Annotated[str, Field(pattern="^(column|online|none|cqt-.*)$"), remedy(_CQT)] = "column"
    crop_s: Number = 5.0  # length of a sample; M config/pretrain, 95M
    crop_samples: Whole | None = None  # instead of crop_s; 122,880 for 330M (M)
    crops_per_segment: Count | None = None  # an epoch's; unset: as many as fit side by side
    min_segment_s: NotNegative = 0.0  # shorter segments are left out; those shorter than a crop always are
    min_rms_db: Number | None = None  # level; this and the next three: filters over OUT/segments.parquet
    max_silence: Share | None = None  # share of 10-ms frames below -60 dBFS
    max_clipping: Share | None = None  # share of samples at full scale
    # SQL condition over its columns, for example: rms_db > -40 and source_rate_hz >= 44100. Of other files
    # it reads lists below OUT/report only
    where: str | None = None
    window_shards: Count = 64  # samples are shuffled inside so many shards
    valid_crops: Natural = 256  # held-out crops, at most; 0: no validation
    max_bad_share: Share = 0.01  # of samples that cannot be read; more stop the run
    workers: Natural = 2  # processes that read, of each rank; 0 reads in the trainer's own
    prefetch: Count = 4  # micro-batches each of them holds ready
    cache: str | None = None  # folder on a local disk; unset: $XDG_CACHE_HOME/overtone or ~/.cache/overtone
    cache_gb: Positive = 20.0  # of pieces of object stores' files; the oldest go first

    def __post_init__(self):
        once = len(set(self.corpora)) == len(self.corpora)
        check(once, self, "corpora", "one is given twice; use data.passes to read it more often")
        each = f"expected one number for each of the {len(self.corpora)} corpora"
        check(len(self.passes) in (0, len(self.corpora)), self, "passes", each)
        field = "crop_s" if self.crop_samples is None else "crop_samples"
        frames = getattr(self, field) * (RATE_HZ if self.crop_samples is None else 1) / HOP_SAMPLES
        hop = f"expected a multiple of {HOP_SAMPLES} samples ({HOP_SAMPLES}/{RATE_HZ} s)"
        whole = frames > 0 and abs(frames - round(frames)) < 1e-9
        check(whole, self, field, f"{hop}, so that labels are cut exactly")

    @property
    def samples(self) -> int:
        """Of a crop, a multiple of 320."""
        return round(self.crop_s * RATE_HZ) if self.crop_samples is None else self.crop_samples

    @property
    def cache_folder(self) -> Path:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(self.cache) if self.cache else Path(base) / "overtone"

    def identity(self) -> dict[str, Any]:
        """The fields that decide which samples there are and in which order; the others are circumstance."""
        own = {"codes": list(self.codes), "crop_samples": self.samples}
        own["weights"] = list(self.passes or (1.0,) * len(self.corpora))  # the old name of `passes`
        return {name: getattr(self, name) for name in _IDENTITY.split()} | own
