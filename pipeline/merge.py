"""`overtone merge OUT --to DIR`: ordinary webdataset tars that hold all columns of each segment."""

import contextlib
import tarfile
from collections import defaultdict
from pathlib import Path

import pyarrow.compute as pc

from pipeline.labelling import registry
from stages.shards import catalog, column
from stages.shards import record as records
from stages.shards.storage import Storage


def merge(place: str, to: str, columns: tuple[str, ...] | None = None, split: str | None = None) -> str:
    """Join the columns of every finished shard into DIR/SHARD.tar; returns a line about what was written.

    Rows of tombstoned recordings are left out, and so is a segment that a column lacks. The same
    inputs give the same bytes; each tar appears whole or not at all. Raises ValueError for an
    unknown column or shards that are not finished.
    """
    out, target = Storage(place), Storage(to)
    known = registry.existing(out)
    names = columns or known.names
    for name in names:
        if name not in known.columns:
            raise ValueError(f"--columns names {name!r}; {place} has {', '.join(known.columns)}")
    kinds = [n.split("-")[0] for n in names]
    if len(set(kinds)) < len(kinds):
        listed = ", ".join(names)
        raise ValueError(f"--columns {listed}: two columns of one kind have members of the same name")
    with out.fetched("plan.parquet") as path:
        plan = catalog.live(catalog.read_plan(path, ["recording", "shard", "split", "tombstone"]))
    if split:
        plan = plan.filter(pc.equal(plan["split"], split))
    done = set.intersection(*(records.finished(out, n) for n in names))
    shards = list(catalog.shard_slices(plan))
    if missing := [s for s in shards if s not in done]:
        raise ValueError(
            f"{len(missing)} shards are not finished (first {missing[0]}): run `labels` to its end first"
        )
    segments = size = 0
    for shard, (start, rows) in catalog.shard_slices(plan).items():
        wanted = set(plan["recording"].slice(start, rows).to_pylist())
        with target.attempt(f"{shard}.tar") as path:
            segments += _join(out, shard, names, wanted, path)
            size += path.stat().st_size
    listed = ", ".join(names)
    return f"{to}: {len(shards)} tars, {segments} segments, {size / 2**20:.1f} MiB, columns {listed}"


def _join(out: Storage, shard: str, names: tuple[str, ...], wanted: set[str], path: Path) -> int:
    keys, members = [], defaultdict(list)
    with contextlib.ExitStack() as stack:
        for name in names:
            index = column.read_index(out, name, shard).select(["key", "recording"]).to_pylist()
            keys.append({row["key"] for row in index if row["recording"] in wanted})
            tar_path = stack.enter_context(out.fetched(records.file(name, shard, "tar")))
            tar = stack.enter_context(tarfile.open(tar_path))
            for info in tar:
                members[info.name.split(".")[0]].append((tar, info))
        joined = stack.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))
        shared = sorted(set.intersection(*keys))
        for key in shared:
            for tar, info in members[key]:
                joined.addfile(info, tar.extractfile(info))
    return len(shared)
