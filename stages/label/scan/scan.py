"""scan: every audio file under the roots → `catalog.parquet`, reading only what is new or changed.

found = kept + rejected + duplicates, always; each rejection has a reason, each excluded file a row.
Nothing here grows with the corpus but files on disk: listing, facts and hashes are parquet, joined
out of core.
"""

import fnmatch
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.label.scan.identity import HASHED, LISTING, PROBED, Identity
from stages.label.scan.listing import Found, open_root
from stages.label.scan.probe_pool import HANG_S, PROBE, probe_all
from stages.label.scan.probing import UNREADABLE, full_sha256, recording_id, words
from stages.shards.catalog import CATALOG, read_catalog, write_parquet

BATCH = 4096  # rows written at once
PROGRESS_S = 0.5
Known = Mapping[str, str] | Callable[[str], str | None]


@dataclass(frozen=True)
class ScanSummary:
    found: int  # kept + rejected + duplicates
    kept: int
    rejected: int
    duplicates: int
    ignored: int  # files that are not audio by their extension
    excluded: int  # by the user
    unchanged: int  # of those found: not read again
    hours: float  # kept, by header


def scan(
    roots: list[str],
    previous: Path | None,
    out: Path,
    *,
    workers: int = 2,
    exclude: Iterable[str] = (),
    retry_rejected: str | None = None,
    known_sha256: Known | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
    probe: str = PROBE,
    hang_s: float = HANG_S,
) -> ScanSummary:
    """Find, probe and identify; write the catalog to the local path `out`, whole or not at all.

    roots           local folders, s3://bucket/prefix, or lists (.txt: one path a line; .parquet: a
                    column `path`); relative listed paths start at the list's folder
    previous        the catalog of the last scan: a row of the same path, size and mtime is not read
                    again, except when it was rejected as `unreadable: …`. May be `out`.
    workers         processes that read headers; few files start fewer
    exclude         shell patterns on the path relative to its root; `*` crosses `/`
    retry_rejected  rejected files whose reason contains this text are probed again; `all`: every one
    known_sha256    recording id → sha256 of the bytes that were labelled under it, or None
    progress        called with {"stage": "scan", "step": "list" | "probe" | "hash", "done", …}
    probe, hang_s   `module:function` that reads one header, and the seconds it may take

    Raises ValueError for a root or catalog that cannot be read, before anything is listed; OSError
    when `out` cannot be written.
    """
    if workers < 1:
        raise ValueError(f"scan: workers is {workers}; give 1 or more")
    if not roots:
        raise ValueError("scan: no audio roots; give a folder, s3://bucket/prefix or a list")
    if previous is not None and (previous := Path(previous)).exists():
        read_catalog(previous, columns=["size"])
    tell = _Teller(progress)
    with tempfile.TemporaryDirectory(prefix="overtone-scan-") as name:
        scratch = Path(name)
        ignored = _list(roots, list(exclude), scratch / "listing.parquet", tell)
        with Identity(scratch / "listing.parquet", previous, scratch, retry_rejected) as identity:
            total, unchanged = identity.counts()
            outcomes = _probe(identity, total, workers, known_sha256, probe, hang_s, tell)
            _write(scratch / "probed.parquet", PROBED, outcomes)
            hashes = _hash(identity.to_hash(scratch / "probed.parquet"), workers, tell)
            _write(scratch / "hashed.parquet", HASHED, hashes)
            counts: dict[str, float] = {"hours": 0.0}
            rows = _counted(identity.catalog(scratch / "hashed.parquet"), counts)
            write_parquet(Path(out), CATALOG, rows)
    kept, rejected, copies = (int(counts.get(s, 0)) for s in ("kept", "rejected", "duplicate"))
    return ScanSummary(
        found=kept + rejected + copies,
        kept=kept,
        rejected=rejected,
        duplicates=copies,
        ignored=ignored,
        excluded=int(counts.get("excluded", 0)),
        unchanged=unchanged,
        hours=counts["hours"],
    )


def check_roots(roots: list[str], exclude: Iterable[str] = ()) -> None:
    """Raise ValueError unless every root can be read and one of them holds a file to scan; lists no further
    than that."""
    listings, ignored = _opened(roots)
    passed, excluded = 0, _excluded(exclude)
    for listing in listings:
        for found in listing():
            if not excluded(found):
                return
            passed += 1
    left_out = f" and {passed} that run.exclude leaves out" if passed else ""
    raise ValueError(
        f"no audio files found under {', '.join(roots)} ({ignored.count} other files{left_out} seen): "
        f"give a folder with wav, flac, mp3, ogg, opus, m4a or aac files"
    )


def _opened(roots: list[str]) -> tuple[list[Callable[[], Iterator[Found]]], "_Count"]:
    """All roots, opened before the first is listed: a mistyped one must not cost an hour. And a count of what
    is no candidate."""
    ignored = _Count()
    return [open_root(root, ignored.add) for root in roots], ignored


def _excluded(exclude: Iterable[str]) -> Callable[[Found], bool]:
    patterns = re.compile("|".join(fnmatch.translate(p) for p in exclude) or r"(?!)")
    return lambda found: bool(patterns.match(os.fsdecode(found.name)))


class _Count:
    def __init__(self):
        self.count = 0

    def add(self) -> None:
        self.count += 1


def _list(roots: list[str], exclude: list[str], path: Path, tell: "_Teller") -> int:
    """Write the listing of all roots; returns how many files were not candidates."""
    listings, ignored = _opened(roots)
    excluded = _excluded(exclude)

    def rows() -> Iterator[dict[str, Any]]:
        found = 0
        for order, (root, listing) in enumerate(zip(roots, listings, strict=True)):
            for f in listing():
                found += 1
                tell("list", done=found)
                row = {"path_bytes": f.path, "name_bytes": f.name, "root": root, "root_order": order}
                row |= {"size": f.size, "mtime_ns": f.mtime_ns, "problem": f.problem}
                yield row | {"excluded": excluded(f)}
        tell("list", done=found, last=True)

    _write(path, LISTING, rows())
    return ignored.count


def _probe(
    identity: Identity,
    total: int,
    workers: int,
    known: Known | None,
    target: str,
    hang_s: float,
    tell: "_Teller",
) -> Iterator[dict[str, Any]]:
    """Rows of `PROBED`, in the order of completion."""
    known_sha = known.get if isinstance(known, Mapping) else known
    listed: dict[bytes, tuple[bytes, int, int]] = {}  # what is being probed now: bounded by the workers

    def paths() -> Iterator[bytes]:
        for path, name, size, mtime_ns in identity.to_probe():
            listed[path] = (name, size, mtime_ns)
            yield path

    rejected = 0
    for done, (path, facts) in enumerate(probe_all(paths(), workers, target, hang_s), start=1):
        name, size, mtime_ns = listed.pop(path)
        row = {"size": size, "mtime_ns": mtime_ns, "rate_hz": 0, "channels": 0, "duration_s": 0.0}
        row |= facts | {"path_bytes": path}
        row["base"] = recording_id(name, row["size"], row.get("quick") or "")
        row["known_sha"] = known_sha(row["base"]) if known_sha and row.get("quick") else None
        rejected += row.get("reason") is not None
        tell("probe", done=done, total=total, rejected=rejected, last=done == total)
        yield row


def _hash(paths: Iterator[tuple[bytes]], workers: int, tell: "_Teller") -> Iterator[dict[str, Any]]:
    """Rows of `HASHED`. Threads: hashing and reading leave the interpreter, and nothing is decoded."""

    def one(path: bytes) -> dict[str, Any]:
        try:
            return {"path_bytes": path, "sha256": full_sha256(path), "error": None}
        except OSError as error:
            return {"path_bytes": path, "sha256": None, "error": UNREADABLE + words(error)}

    done = 0
    with ThreadPoolExecutor(workers) as pool:
        while some := [path for (path,) in islice(paths, 256)]:
            for row in pool.map(one, some):
                done += 1
                tell("hash", done=done)
                yield row


def _counted(batches: Iterator[pa.RecordBatch], counts: dict[str, float]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for status in pc.value_counts(batch["status"]).to_pylist():
            counts[status["values"]] = counts.get(status["values"], 0) + status["counts"]
        kept = batch.filter(pc.equal(batch["status"], "kept"))
        counts["hours"] += (pc.sum(kept["duration_s"]).as_py() or 0.0) / 3600
        yield batch


def _write(path: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema=schema))


class _Teller:
    """Progress a few times a second, not once a file."""

    def __init__(self, progress: Callable[[dict[str, Any]], None] | None):
        self._progress, self._next = progress, 0.0

    def __call__(self, step: str, *, last: bool = False, **facts: int) -> None:
        if self._progress and (last or time.monotonic() >= self._next):
            self._progress({"stage": "scan", "step": step, **facts})
            self._next = time.monotonic() + PROGRESS_S
