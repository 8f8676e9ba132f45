"""`overtone merge OUT --to DIR`: ordinary webdataset tars that hold all columns."""

import contextlib
import tarfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import pyarrow.compute as pc

from pipeline.labelling import registry
from pipeline.spread import spread
from stages.shards import catalog, column, record
from stages.shards.storage import Storage


def merge(place: str, to: str, columns: tuple[str, ...] | None = None, split: str | None = None) -> str:
    """Returns a line about what was written. Tombstoned recordings are left out, and segments that a column
    lacks. The same inputs give the same bytes; each tar appears whole or not at all. ValueError for an
    unknown column or unfinished shards."""
    out, target = Storage(place), Storage(to)
    known = registry.existing(out)
    if f"{target.real}/".startswith(f"{out.real}/") or target.exists(registry.NAME):
        raise ValueError(f"--to {to} holds labels, whose tars it would replace: give a folder of its own")
    names = columns or known.names
    for name in names:
        if name not in known.columns:
            raise ValueError(f"--columns names {name!r}; {place} has {', '.join(known.columns)}")
    listed = ", ".join(names)
    if len({name.split("-")[0] for name in names}) < len(names):
        raise ValueError(f"--columns {listed}: two columns of one kind have members of the same name")
    with out.fetched("plan.parquet") as path:
        plan = catalog.live(catalog.read_plan(path, ["recording", "shard", "split", "tombstone"]))
    if split:
        plan = plan.filter(pc.equal(plan["split"], split))
    done = set.intersection(*(record.finished(out, name) for name in names))
    shards = catalog.shard_slices(plan)
    if missing := [shard for shard in shards if shard not in done]:
        raise ValueError(
            f"{len(missing)} shards are not finished (first {missing[0]}): run `labels` to its end first"
        )
    segments = size = 0
    wanted = lambda shard: plan["recording"].slice(*shards[shard]).to_pylist()  # noqa: E731
    for _, made in spread("merge", partial(_merge, out, target, names), list(shards), target, wanted):
        if isinstance(made, OSError):
            raise made
        segments, size = segments + made[0], size + made[1]
    return f"{to}: {len(shards)} tars, {segments} segments, {size / 2**20:.1f} MiB, columns {listed}"


def _merge(
    out: Storage, target: Storage, names: tuple[str, ...], shard: str, wanted: list[str]
) -> tuple[int, int]:
    """(segments, bytes) of the shard's tar."""
    with target.attempt(f"{shard}.tar") as path:
        return _join(out, shard, names, set(wanted), path), path.stat().st_size


def _join(out: Storage, shard: str, names: tuple[str, ...], wanted: set[str], path: Path) -> int:
    keys, members = [], defaultdict(list)
    with contextlib.ExitStack() as stack:
        for name in names:
            index = column.read_index(out, name, shard).select(["key", "recording"]).to_pylist()
            keys.append({row["key"] for row in index if row["recording"] in wanted})
            path_in = stack.enter_context(out.fetched(record.file(name, shard, "tar")))
            tar = stack.enter_context(tarfile.open(path_in))
            for info in tar:
                members[info.name.split(".")[0]].append((tar, info))
        joined = stack.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))
        shared = set.intersection(*keys)
        for key in sorted(shared):
            for tar, info in members[key]:
                joined.addfile(info, tar.extractfile(info))
    return len(shared)
