"""The pinned data of a run: its segments and where their bytes are, as flat arrays on a local disk.

R segments (rows), S shards, C code columns. Rows are in (shard, key) order: those of a recording follow each
other. Rows that are not drawn (crops 0) stay: they are context for the rows next to them."""

import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.data.order import Shards

LAYOUT = 1  # of the cached arrays: raise it when they change

# Each is one .npy file, read through memory maps. Besides: key_R, bytes as long as the longest key, and
# valid_V, the rows held out. `ends_R`: running total of `crops_R`; `packed_R`: bytes if compressed, else 0.
ROWS = dict.fromkeys(("shard_R", "samples_R", "packed_R"), np.int32) | {"crops_R": np.uint16}
ROWS |= dict.fromkeys(("start_R", "ends_R", "audio_R", "codes_RC", "cqt_R"), np.int64)
PER_SHARD = {"row_S": np.int64, "crops_S": np.int64, "corpus_S": np.int32}
PER_SHARD |= {"offset_S": np.float32, "scale_S": np.float32}


@dataclass(frozen=True)
class CqtColumn:
    """A stored one, or what `cqt: online` computes. Fields of its recipe (stages/signal/cqt.py)."""

    name: str  # cqt-<recipe8>, or online
    bins: int
    magnitude: str = "linear"  # or log
    dtype: str = "float16"  # as stored; uint8 has an offset and a scale for each shard
    fmin_hz: float = 32.7
    bins_per_octave: int = 48
    context_samples: int = 0  # on each side of a crop, for online


@dataclass(frozen=True)
class Facts:
    """All but the rows; the plain part of RUN/data.json."""

    fingerprint: str
    identity: dict[str, Any]  # the configuration's deciding fields
    audio: list[str]  # column of each corpus
    codes: tuple[CodeColumn, ...]
    codes_dtype: tuple[str, ...]  # as stored
    cqt: CqtColumn | None
    shards: list[list[str]]  # of each corpus
    tombstones: list[str]  # digest of each corpus's live recordings in these shards
    hours: float  # of the segments drawn for training
    valid_hours: float
    recordings: dict[str, int]  # train, valid
    segments: dict[str, int]  # train, valid
    dropped: dict[str, int]  # reason → segments
    layout: int = LAYOUT

    @property
    def labels(self) -> list[tuple[str, int, np.dtype]]:
        """(name, values of a frame, dtype) of each label column on the disk: codes, then the CQT."""
        codes, cqt = zip(self.codes, self.codes_dtype, strict=True), self.cqt
        found = [(column.name, column.codebooks, np.dtype(dtype)) for column, dtype in codes]
        if cqt and cqt.name != "online":
            found.append((cqt.name, cqt.bins, np.dtype(cqt.dtype)))
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"cqt_bins": self.cqt.bins if self.cqt else None}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Facts":
        """ValueError when it is not what `to_json` wrote."""
        try:
            own = {k: v for k, v in data.items() if k in Facts.__dataclass_fields__}
            own["codes"] = tuple(CodeColumn(**c) for c in own["codes"])
            own["codes_dtype"] = tuple(own["codes_dtype"])
            own["cqt"] = CqtColumn(**own["cqt"]) if own["cqt"] else None
            return Facts(**own)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"the pinned data (RUN/data.json) cannot be read ({error!r}): --set resume.allow=data pins "
                "it anew"
            ) from None


@dataclass(frozen=True)
class Pinned:
    """Cheap to pickle: workers open the arrays by their path."""

    facts: Facts
    folder: Path  # of the arrays
    corpora: tuple[str, ...]  # roots, as configured now
    _arrays: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self):
        return Pinned, (self.facts, self.folder, self.corpora)

    def __getattr__(self, name: str) -> Any:
        if name in Facts.__dataclass_fields__:
            return getattr(self.facts, name)
        if name not in {*ROWS, *PER_SHARD, "key_R", "valid_V"}:
            raise AttributeError(name)
        if name not in self._arrays:
            mapped = "r" if name.endswith(("_R", "_RC")) else None
            self._arrays[name] = np.load(self.folder / f"{name}.npy", mmap_mode=mapped).view(np.ndarray)
        return self._arrays[name]

    @property
    def there(self) -> bool:
        return (self.folder / "facts.json").exists()

    @property
    def cqt_bins(self) -> int | None:
        return self.cqt.bins if self.cqt else None

    @property
    def targets(self) -> tuple[tuple[CodeColumn, ...], int | None, int]:
        """What a model learns from: code columns, bins of the CQT and bins of its octave."""
        octave = self.cqt.bins_per_octave if self.cqt else CqtColumn.bins_per_octave
        return self.codes, self.cqt_bins, octave

    @property
    def samples_per_epoch(self) -> int:
        return self.order.samples_per_epoch

    @cached_property
    def ends_S(self) -> np.ndarray:
        """int64 (S,): running total of the shards' samples of one pass."""
        return np.cumsum(self.crops_S)

    @cached_property
    def shard_names(self) -> list[str]:
        return sum(self.facts.shards, [])

    @cached_property
    def order(self) -> Shards:
        weights, window_shards = tuple(self.identity["weights"]), self.identity["window_shards"]
        return Shards(self.fingerprint, self.crops_S, self.corpus_S, weights, window_shards)

    def to_json(self) -> dict[str, Any]:
        return self.facts.to_json()

    def key(self, row: int) -> str:
        return self.key_R[row].decode()

    def recording(self, row: int) -> str:
        return self.key(row).rpartition("-")[0]

    def require(self, global_batch: int) -> None:
        """ValueError when an epoch has fewer samples than one global batch."""
        if self.samples_per_epoch < global_batch:
            why = ", ".join(f"{n} segments: {reason}" for reason, n in self.dropped.items()) or "none"
            raise ValueError(
                f"global_batch is {global_batch}, an epoch has {self.samples_per_epoch} samples "
                f"({self.hours:.2f} h; left out: {why}): lower the global batch, raise "
                "data.crops_per_segment, loosen the filters, or label more audio"
            )

    def describe(self) -> list[str]:
        held_out = f"held out {self.valid_hours:.2f} h, {self.recordings['valid']} recordings"
        if not self.recordings["valid"]:
            held_out = (
                "NO held-out music, so no held-out loss and no `best` checkpoint: label more recordings, or "
                "with a larger recipe.plan.validation_share"
            )
        return [
            f"data {self.fingerprint[:12]}: {self.hours:.2f} h, {self.recordings['train']} recordings, "
            f"{self.samples_per_epoch} samples an epoch; {held_out}",
            *(f"  left out: {n} segments, {reason}" for reason, n in self.dropped.items()),
        ]


def store(folder: Path, facts: Facts, arrays: dict[str, np.ndarray]) -> None:
    """Whoever renames first wins, and all wrote the same."""
    attempt = folder.with_name(f".attempt-{uuid.uuid4().hex}")
    attempt.mkdir(parents=True)
    try:
        for name, values in arrays.items():
            np.save(attempt / f"{name}.npy", values)
        (attempt / "facts.json").write_text(json.dumps(facts.to_json()))
        try:
            os.rename(attempt, folder)
        except OSError:
            if not (folder / "facts.json").exists():
                raise
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def load(folder: Path, corpora: tuple[str, ...]) -> Pinned | None:
    """None where no data of this layout is."""
    try:
        facts = Facts.from_json(json.loads((folder / "facts.json").read_text()))
    except (OSError, ValueError):
        return None
    own = (facts.layout, facts.fingerprint) == (LAYOUT, folder.name)
    return Pinned(facts, folder, corpora) if own else None
