"""`overtone merge OUT --to DIR`: ordinary webdataset tars that hold all columns of each segment."""

import contextlib
import tarfile
from collections.abc import Iterator

import pyarrow as pa
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


def _join(out: Storage, shard: str, names: tuple[str, ...], wanted: set[str], path) -> int:
    indexes = {n: column.read_index(out, n, shard) for n in names}
    live = pa.array(sorted(wanted), pa.string())
    keys = [t.filter(pc.is_in(t["recording"], live))["key"].to_pylist() for t in indexes.values()]
    shared = set.intersection(*map(set, keys))
    with contextlib.ExitStack() as stack:
        tars = [stack.enter_context(_members(out, n, shard)) for n in names]
        joined = stack.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))
        for key in sorted(shared):
            for members in tars:
                for info, data in members(key):
                    joined.addfile(info, data)
    return len(shared)


@contextlib.contextmanager
def _members(out: Storage, name: str, shard: str) -> Iterator:
    """A function that gives (header, data) of a key's members of one column."""
    with out.fetched(records.file(name, shard, "tar")) as path, tarfile.open(path) as tar:
        by_key: dict[str, list] = {}
        for info in tar:
            by_key.setdefault(info.name.split(".")[0], []).append(info)

        yield lambda key: [(info, tar.extractfile(info)) for info in by_key[key]]
