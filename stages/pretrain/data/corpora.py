"""The finished shards of the OUT folders that a run is trained on: found, and their records checked."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import yaml

from stages.pretrain.data.settings import Data
from stages.shards import catalog, column
from stages.shards import record as records
from stages.shards.record import Record
from stages.shards.storage import Storage

THREADS = 16  # that read records: most of the time is waiting


@dataclass(frozen=True)
class PinnedCorpus:
    storage: Storage
    audio: str
    codes: tuple[str, ...]
    cqt: str | None
    shards: tuple[str, ...] = ()
    records: dict[tuple[str, str], Record] = field(default_factory=dict)  # (column, shard)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.codes + ((self.cqt,) if self.cqt else ())

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.audio, *self.labels)

    def damaged(self, name: str, shard: str, what: str) -> ValueError:
        return ValueError(
            f"{self.storage.root}: {name}/{shard} {what}: `overtone verify --repair`, then label again"
        )


def find(root: str, data: Data, previous: tuple[str, list[str]] | None) -> PinnedCorpus:
    """`previous`: (audio column, shards) a run was begun with. Raises ValueError."""
    try:
        storage = Storage(root)
        recipe = yaml.safe_load(storage.read("recipe.yaml"))
        known, current = recipe["columns"], recipe["current"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(
            f"data.corpora: {root} cannot be read as labels ({first_line(error)}): give the OUT of an "
            "`overtone labels` run that every rank can see"
        ) from None
    audio, shards = previous or (current["audio"], None)
    codes = data.codes or ((current["codes"],) if "codes" in current else ())
    cqt = current.get("cqt") if data.cqt == "column" else data.cqt if data.cqt.startswith("cqt-") else None
    if data.cqt == "column" and cqt is None:
        raise ValueError(
            f"data.cqt is column, and {root} has none: label with recipe.cqt, or set data.cqt to online or "
            "none"
        )
    corpus = PinnedCorpus(storage, audio, tuple(codes), cqt)
    for name in corpus.columns:
        if name not in known:
            raise ValueError(f"data.codes or data.cqt names {name}, {root} has {', '.join(sorted(known))}")
    corpus = _with_shards(corpus, shards)
    for (name, shard), record in corpus.records.items():
        seen, named = records.recipe8(record.recipe), records.recipe8(known[name])
        if seen != named:
            raise corpus.damaged(name, shard, f"was made by recipe {seen}, {name} is {named}")
        if name != audio and record.source_sha256 != corpus.records[audio, shard].sha256:
            what = f"was made from another {audio} tar than the one that is there"
            raise corpus.damaged(name, shard, what)
    return corpus


def _with_shards(corpus: PinnedCorpus, pinned: list[str] | None) -> PinnedCorpus:
    finished = {name: records.finished(corpus.storage, name) for name in corpus.columns}
    shards = sorted(set.intersection(*finished.values()) if pinned is None else pinned)
    root = corpus.storage.root
    if not shards:
        raise ValueError(
            f"data.corpora: {root} has no shard that is finished in {', '.join(corpus.columns)}: run "
            "`overtone labels` to its end"
        )
    for name, whole in finished.items():
        if missing := [s for s in shards if s not in whole]:
            raise ValueError(
                f"{root}: {len(missing)} pinned shards are not finished in {name} any more, first "
                f"{missing[0]}: run `overtone labels` again, or go on without them with --set "
                "resume.allow=data"
            )
    places = [(name, shard) for name in corpus.columns for shard in shards]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda place: records.read(corpus.storage, *place), places)
        return replace(corpus, shards=tuple(shards), records=dict(zip(places, found, strict=True)))


def live_digest(storage: Storage, shards: tuple[str, ...]) -> str:
    """Of the recordings in use in these shards: changes when one is tombstoned."""
    with storage.fetched("plan.parquet") as path:
        plan = catalog.live(catalog.read_plan(path, ["recording", "shard", "tombstone"]))
    own = plan["recording"].filter(pa.compute.is_in(plan["shard"], pa.array(shards, pa.string())))
    return hashlib.sha256("\n".join(sorted(own.to_pylist())).encode()).hexdigest()


def stored_form(corpora: list[PinnedCorpus], name: str, default: tuple[str, int]) -> tuple[str, int]:
    """(dtype, values of a frame) of a label column, from its first member's header."""
    for corpus in corpora:
        for shard in corpus.shards:
            index = column.read_index(corpus.storage, name, shard)
            if index.num_rows:
                with corpus.storage.open(records.file(name, shard, "tar")) as tar:
                    tar.seek(index["offset"][0].as_py())
                    _, shape, dtype = column.npy_header(tar.read(min(256, index["size"][0].as_py())))
                return dtype.name, int(np.prod(shape[1:]))
    return default


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
