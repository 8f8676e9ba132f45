"""scan: every audio file under the roots → `catalog.parquet`, reading only what is new or changed.

found = kept + rejected + duplicates, always; each rejection has a reason, each excluded file a row. Memory
does not grow with the corpus: listing, facts and hashes are parquet files, joined out of core.
"""

import fnmatch
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.label.decoding.opening import SIZE
from stages.label.scan import probe_pool
from stages.label.scan.identity import HASHED, LISTING, PROBED, Identity
from stages.label.scan.listing import LeftOut, open_root
from stages.label.scan.parts import NONE, Parts
from stages.label.scan.probing import UNREADABLE, full_sha256, recording_id, words
from stages.shards import scratch
from stages.shards.catalog import CATALOG, read_catalog, write_parquet

BATCH = 4096  # rows in one write
PROGRESS_S = 0.5
Row = dict[str, Any]


@dataclass(frozen=True)
class ScanSummary:
    found: int  # kept + rejected + duplicates
    kept: int
    rejected: int
    duplicates: int
    ignored: int  # files that are not audio by their extension
    excluded: int  # by the user
    unchanged: int  # of those found: not read again
    hours: float  # kept, before they are decoded
    estimated: int  # kept, whose hours are estimated from their size
    endings: dict[str, int]  # of the ignored files
    sidecars: dict[str, int]  # what systems put beside music, by the pattern of its name


def scan(
    roots: list[str],
    previous: Path | None,
    out: Path,
    *,
    workers: int = 2,
    exclude: Iterable[str] = (),
    include_hidden: bool = False,
    retry_rejected: str | None = None,
    known_sha256: Callable[[str], str | None] = {}.get,
    parts: Parts = NONE,
    probe_all: Callable[[Iterable[tuple], int], Iterator[tuple[tuple, Row]]] = probe_pool.probe_all,
    progress: Callable[[Row], None] | None = None,
) -> ScanSummary:
    """Find, probe and identify; write the catalog to the local path `out`, whole or not at all.

    roots           local folders, s3://bucket/prefix, or lists (.txt: one path a line; .parquet: a column
                    `path`); relative listed paths start at the list's folder
    previous        the last scan's catalog, may be `out`: a row of the same path, size and mtime is not read
                    again, unless it was rejected as `unreadable: …`
    workers         processes that read headers; few files start fewer
    exclude         shell patterns on the path relative to its root; `*` crosses `/`
    include_hidden  scan sidecars, such as ._x.mp3, like other files
    retry_rejected  rejected files whose reason contains this text are probed again; `all`: every one
    known_sha256    recording id → sha256 of the bytes that were labelled under it, or None
    parts           keep what was read for the next scan, should this one not end; the caller clears them
    probe_all       what reads the headers, in `workers` processes of this machine or elsewhere
    progress        called with {"stage": "scan", "step": "list" | "probe" | "hash", "done", …},
                    and "last" at the end of a step

    Raises ValueError for a root or catalog that cannot be read, before anything is listed; OSError when `out`
    cannot be written.
    """
    if workers < 1:
        raise ValueError(f"scan: workers is {workers}; give 1 or more")
    if not roots:
        raise ValueError("scan: no audio roots; give a folder, s3://bucket/prefix or a list")
    if previous is not None and (previous := Path(previous)).exists():
        read_catalog(previous, columns=["size"])
    report, counts, left_out = _Report(progress), Counter(), Counter()
    with scratch.directory() as name:
        listing, probed, hashed = (Path(name) / f"{step}.parquet" for step in ("listing", "probed", "hashed"))
        _write(listing, LISTING, _list(roots, exclude, include_hidden, left_out, report))
        earlier = parts.joined(Path(name) / "earlier.parquet")
        with closing(Identity(listing, previous, earlier, Path(name), retry_rejected)) as identity:
            total, unchanged = identity.counts()
            outcomes = parts.keeping(probe_all(identity.to_probe(), workers))
            outcomes = chain(identity.answered(), outcomes)
            _write(probed, PROBED, _probed(outcomes, total, known_sha256, report))
            _write(hashed, HASHED, _hash(identity.to_hash(probed), workers, parts, report))
            write_parquet(Path(out), CATALOG, _counted(identity.catalog(hashed), counts))
    return ScanSummary(
        found=counts["kept"] + counts["rejected"] + counts["duplicate"],
        duplicates=counts["duplicate"],
        unchanged=unchanged,
        hours=float(counts["hours"]),
        **{name: counts[name] for name in ("kept", "rejected", "excluded", "estimated")},
        **_left_out(left_out),
    )


def check_roots(roots: list[str], exclude: Iterable[str] = (), include_hidden: bool = False) -> None:
    """Raise ValueError unless every root can be read and some root holds a file to scan. Lists no further."""
    left_out, excluded = Counter(), 0
    for row in _list(roots, exclude, include_hidden, left_out, _Report(None)):
        if not row["excluded"]:
            return
        excluded += 1
    also = f" and {excluded} that run.exclude leaves out" if excluded else ""
    raise ValueError(
        f"no audio files found under {', '.join(roots)} ({_left_out(left_out)['ignored']} other files{also} "
        f"seen): give a folder with wav, flac, mp3, ogg, opus, m4a or aac files"
    )


def _left_out(kinds: Counter) -> Row:
    endings = {one.kind: n for one, n in kinds.most_common() if not one.sidecar}
    sidecars = {one.kind: n for one, n in kinds.most_common() if one.sidecar}
    return {"ignored": sum(endings.values()), "endings": endings, "sidecars": sidecars}


def _list(
    roots: list[str], exclude: Iterable[str], include_hidden: bool, left_out: Counter, report: "_Report"
) -> Iterator[Row]:
    """Rows of `LISTING`; adds what is no candidate to `left_out`."""
    excluded = re.compile("|".join(map(fnmatch.translate, exclude)) or r"(?!)")
    done = 0
    opened = [(root, open_root(root, include_hidden)) for root in roots]
    for order, (root, listing) in enumerate(opened):
        shown = os.fsencode(root).decode("utf-8", "backslashreplace")
        for found in listing():
            done += 1
            report("list", done=done)
            if isinstance(found, LeftOut):
                left_out[found] += 1
                continue
            matched = bool(excluded.match(os.fsdecode(found.name_bytes)))
            yield found._asdict() | {"root": shown, "root_order": order, "excluded": matched}
    report("list", done=done, last=True)


def _probed(outcomes: Iterator, total: int, known_sha: Callable, report: "_Report") -> Iterator[Row]:
    """Rows of `PROBED`, in the order of completion."""
    rejected = 0
    for done, ((path, name, size, mtime_ns), facts) in enumerate(outcomes, start=1):
        row = dict(size=size, mtime_ns=mtime_ns, rate_hz=0, channels=0, duration_s=0.0)
        row |= facts | {"path_bytes": path}
        row["base"] = recording_id(name, row["size"], row.get("quick") or "")
        row["known_sha"] = known_sha(row["base"]) if row.get("quick") else None
        rejected += row.get("reason") is not None
        report("probe", done=done, total=total, rejected=rejected, last=done == total)
        yield row


def _hash(files: Iterator[tuple], workers: int, parts: Parts, report: "_Report") -> Iterator[Row]:
    """Rows of `HASHED`. In threads: hashing and reading release the GIL, and nothing is decoded."""

    def one(file: tuple[bytes, int, int, str | None]) -> Row:
        path, size, mtime_ns, known = file
        row = {"path_bytes": path, "size": size, "mtime_ns": mtime_ns}
        try:
            return row | {"sha256": known or full_sha256(path)}
        except OSError as error:
            return row | {"error": UNREADABLE + words(error)}

    done = 0
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(files, 256)):
            for (*_, known), row in zip(some, pool.map(one, some), strict=True):
                done += 1
                report("hash", done=done)
                if known is None and "error" not in row:
                    parts.add(row)
                yield row


def _counted(batches: Iterator[pa.RecordBatch], counts: Counter) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        counts.update(batch["status"].to_pylist())
        kept = batch.filter(pc.equal(batch["status"], "kept"))
        counts["hours"] += (pc.sum(kept["duration_s"]).as_py() or 0.0) / 3600
        counts["estimated"] += kept["duration_from"].to_pylist().count(SIZE)
        yield batch


def _write(path: Path, schema: pa.Schema, rows: Iterator[Row]) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema=schema))


class _Report:
    """Progress a few times a second, not once a file."""

    def __init__(self, progress: Callable[[Row], None] | None):
        self._progress, self._next = progress, 0.0

    def __call__(self, step: str, *, last: bool = False, **facts: int) -> None:
        if self._progress and (last or time.monotonic() >= self._next):
            self._progress({"stage": "scan", "step": step, **facts} | ({"last": True} if last else {}))
            self._next = time.monotonic() + PROGRESS_S
