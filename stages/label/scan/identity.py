"""Which recording is each file? Joins a listing with the previous catalog, out of core, in DuckDB.

Files flow: listing → (unchanged, or probed) → ids → duplicates → catalog. A file's whole sha256 is read only
where an id or a duplicate depends on it.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from stages.label.scan.probing import UNREADABLE
from stages.shards.catalog import BYTES_PER_S, CATALOG, LEAST_BYTES_PER_S
from stages.shards.tables import connect


def _schema(**names: str) -> pa.Schema:
    return pa.schema([(name, kind) for kind, some in names.items() for name in some.split()])


LISTING = _schema(
    binary="path_bytes name_bytes", string="root problem", int64="root_order size mtime_ns", bool="excluded"
)
# base: the id by name, size and quick hash. known_sha: sha256 of the bytes that were labelled under that id.
_TEXTS = "quick container codec duration_from reason base known_sha"
_NUMBERS = "size mtime_ns rate_hz channels"
PROBED = _schema(binary="path_bytes", string=_TEXTS, int64=_NUMBERS, float64="duration_s")
HASHED = _schema(binary="path_bytes", string="sha256 error")

# One row per path: two roots may reach the same file. A path keeps its first name, and so its id, even if its
# root is given differently.
_LISTED = """
CREATE TABLE listed AS SELECT l.* REPLACE (coalesce(o.name_bytes, l.name_bytes) AS name_bytes,
        bool_or(l.excluded) OVER (PARTITION BY l.path_bytes) AS excluded),
    o.path_bytes IS NOT NULL AND NOT l.excluded AND l.problem IS NULL
        AND o.size = l.size AND o.mtime_ns = l.mtime_ns AND o.status <> 'excluded'
        AND NOT (o.status = 'rejected' AND (starts_with(o.reason, $unreadable)
            OR coalesce($retry = 'all' OR contains(o.reason, $retry), false))) AS unchanged
FROM listing l LEFT JOIN old o USING (path_bytes)
QUALIFY row_number() OVER (PARTITION BY l.path_bytes ORDER BY l.root_order, l.name_bytes) = 1
"""

# A length of the first version of the catalog, which took every header's word.
_LIE = f"""(duration_from IS NULL AND status <> 'rejected'
    AND NOT coalesce(duration_s BETWEEN 1e-9 AND o.size / {LEAST_BYTES_PER_S}, false))"""

# How each row gets its id: `rule`.
#   same     path, size and mtime as before: nothing was read
#   moved    another path, but name, content hash and mtime of exactly one file that is missing
#   touched  path, size and quick hash as before, another mtime: the middle may differ
#   known    bytes were labelled under this id before: they must be the same
#   new
_ROWS = f"""
CREATE VIEW accepted AS FROM old WHERE status IN ('kept', 'duplicate');
CREATE TABLE missing AS SELECT name_bytes, size, quick, mtime_ns, any_value(recording) AS recording,
    any_value(sha256) AS sha256 FROM accepted WHERE path_bytes NOT IN (SELECT path_bytes FROM listed)
    GROUP BY ALL HAVING count(*) = 1;
CREATE TABLE rows AS
SELECT o.* EXCLUDE (path, status, duplicate_of, recording)
        REPLACE (l.root AS root, CASE WHEN status = 'rejected' THEN reason END AS reason,
            CASE WHEN {_LIE} THEN o.size / {BYTES_PER_S} ELSE duration_s END AS duration_s,
            CASE WHEN {_LIE} THEN 'size' ELSE duration_from END AS duration_from), 'same' AS rule,
    recording AS base, recording AS old_recording, sha256 AS old_sha, status = 'kept' AS was_kept
FROM listed l JOIN old o USING (path_bytes) WHERE l.unchanged
UNION ALL BY NAME
SELECT f.*, l.root, l.name_bytes, CASE WHEN t.path_bytes IS NULL THEN m.sha256 END AS sha256,
    CASE WHEN t.path_bytes IS NOT NULL THEN 'touched' WHEN m.recording IS NOT NULL THEN 'moved'
        WHEN f.known_sha IS NOT NULL THEN 'known' ELSE 'new' END AS rule,
    coalesce(t.recording, m.recording) AS old_recording, t.sha256 AS old_sha,
    coalesce(t.status = 'kept', m.recording IS NOT NULL) AS was_kept
FROM probed f JOIN (SELECT path_bytes, root, name_bytes FROM listed) l USING (path_bytes)
LEFT JOIN missing m USING (name_bytes, size, quick, mtime_ns)
LEFT JOIN accepted t USING (path_bytes, size, quick)
"""

_TO_PROBE = "problem IS NULL AND NOT excluded AND NOT unchanged"

# What scans that did not end read of files that are still the same.
_ANSWERED = f"""
CREATE TABLE read AS SELECT path_bytes, size, mtime_ns, any_value(sha256) AS sha256 FROM earlier
    WHERE sha256 IS NOT NULL GROUP BY ALL;
CREATE TABLE answered AS SELECT e.* EXCLUDE (sha256), l.name_bytes
FROM listed l JOIN earlier e USING (path_bytes, size, mtime_ns)
WHERE {_TO_PROBE} AND e.sha256 IS NULL AND NOT coalesce(starts_with(e.reason, $unreadable)
    OR $retry = 'all' AND e.reason IS NOT NULL OR contains(e.reason, $retry), false)
QUALIFY row_number() OVER (PARTITION BY path_bytes ORDER BY e.reason NULLS FIRST) = 1
"""

_TO_HASH = """
SELECT path_bytes, size, mtime_ns, read.sha256 FROM rows LEFT JOIN read USING (path_bytes, size, mtime_ns)
WHERE reason IS NULL AND rows.sha256 IS NULL AND (rule IN ('touched', 'known')
    OR (size, quick) IN (SELECT (size, quick) FROM rows WHERE reason IS NULL
        GROUP BY size, quick HAVING count(*) > 1))
ORDER BY path_bytes
"""

# `probing.recording_id` in DuckDB's SQL.
_ZERO = "'\\x00'::BLOB"
_ID = f"substr(sha256(name_bytes || {_ZERO} || encode(size::VARCHAR) || {_ZERO} || encode(%s)), 1, 16)"
_SHA_ID = _ID % f"quick) || {_ZERO} || encode(sha256"
_NO_CONTENT_ID = _ID % "''"

# The base id belongs to the content that had it first: other content gets an id with its sha256.
_SETTLED = f"""
CREATE TABLE settled AS WITH hashes AS (
    SELECT rows.* REPLACE (coalesce(rows.sha256, h.sha256) AS sha256, coalesce(reason, error) AS reason)
    FROM rows LEFT JOIN hashed h USING (path_bytes)
), named AS (
    SELECT *, CASE
        WHEN reason IS NOT NULL OR rule = 'new' THEN base
        WHEN rule IN ('same', 'moved') THEN old_recording
        WHEN coalesce(known_sha, CASE WHEN rule = 'touched' AND old_recording = base
            THEN coalesce(old_sha, sha256) END) = sha256 THEN base
        ELSE {_SHA_ID} END AS recording, was_kept AND recording = old_recording AS first
    FROM hashes
), copies AS (
    SELECT *, row_number() OVER w AS copy, first_value(path_bytes) OVER w AS original
    FROM named WHERE reason IS NULL
    WINDOW w AS (PARTITION BY size, quick, coalesce(sha256, hex(path_bytes)) ORDER BY first DESC, path_bytes)
)
SELECT * REPLACE (CASE WHEN copy = 1 AND row_number() OVER
        (PARTITION BY recording, copy = 1 ORDER BY first DESC, rule <> 'same', path_bytes) > 1
    THEN {_SHA_ID} ELSE recording END AS recording)
FROM copies
UNION ALL BY NAME
SELECT *, 0 AS copy FROM named WHERE reason IS NOT NULL
"""

_CATALOG = f"""
SELECT s.*, CASE s.copy WHEN 0 THEN 'rejected' WHEN 1 THEN 'kept' ELSE 'duplicate' END AS status,
    CASE WHEN s.copy > 1 THEN k.recording END AS duplicate_of
FROM settled s LEFT JOIN settled k ON s.copy > 1 AND k.path_bytes = s.original
UNION ALL BY NAME
SELECT path_bytes, root, name_bytes, size, mtime_ns, 0 AS rate_hz, 0 AS channels, 0.0 AS duration_s,
    CASE WHEN excluded THEN 'excluded' ELSE 'rejected' END AS status,
    CASE WHEN NOT excluded THEN problem END AS reason,
    CASE WHEN NOT excluded THEN {_NO_CONTENT_ID} END AS recording
FROM listed WHERE excluded OR problem IS NOT NULL
"""


class Identity:
    """One scan's tables. Parquet files go in, the catalog's rows come out. `previous` is a valid catalog,
    `earlier` what scans that did not end have read (`parts.PART`)."""

    def __init__(
        self, listing: Path, previous: Path | None, earlier: Path, scratch: Path, retry_rejected: str | None
    ):
        self._db = connect(scratch, memory_gb=1)
        if previous is not None and previous.exists():
            self._read("old", previous)
        else:
            self._db.register("old", CATALOG.empty_table())
        self._read("listing", listing)
        self._read("earlier", earlier)
        self._db.execute(_LISTED, {"unreadable": UNREADABLE, "retry": retry_rejected}).fetchall()
        self._db.execute(_ANSWERED, {"unreadable": UNREADABLE, "retry": retry_rejected}).fetchall()

    def close(self) -> None:
        self._db.close()

    def counts(self) -> tuple[int, int]:
        """(files to be probed, unchanged files)."""
        query = f"SELECT count(*) FILTER ({_TO_PROBE}), count(*) FILTER (unchanged) FROM listed"
        return self._db.execute(query).fetchall()[0]

    def to_probe(self) -> Iterator[tuple[bytes, bytes, int, int]]:
        """(path, name, size, mtime) of each new or changed file, but those of `answered`."""
        columns = "path_bytes, name_bytes, size, mtime_ns"
        todo = f"{_TO_PROBE} AND path_bytes NOT IN (SELECT path_bytes FROM answered)"
        return self._stream(f"SELECT {columns} FROM listed WHERE {todo} ORDER BY path_bytes")

    def answered(self) -> Iterator[tuple[tuple[bytes, bytes, int, int], dict]]:
        """The new or changed files that earlier scans probed, and their facts, as of `probe_all`."""
        columns = [name for name in PROBED.names if name not in ("path_bytes", "base", "known_sha")]
        rows = self._stream(f"SELECT path_bytes, name_bytes, {', '.join(columns)} FROM answered")
        for path, name, *values in rows:
            facts = {k: v for k, v in zip(columns, values, strict=True) if v is not None}
            yield (path, name, facts["size"], facts["mtime_ns"]), facts

    def to_hash(self, probed: Path) -> Iterator[tuple[bytes, int, int, str | None]]:
        """(path, size, mtime) of files whose whole content decides an id or a duplicate, and its sha256 where
        an earlier scan has read it."""
        self._read("probed", probed)
        self._db.execute(_ROWS).fetchall()
        return self._stream(_TO_HASH)

    def catalog(self, hashed: Path) -> Iterator[pa.RecordBatch]:
        """The new catalog's rows, sorted by `path_bytes`."""
        self._read("hashed", hashed)
        self._db.execute(_SETTLED).fetchall()
        names = ", ".join(name for name in CATALOG.names if name != "path")
        rows = self._db.sql(f"SELECT {names} FROM ({_CATALOG}) ORDER BY path_bytes")
        for batch in rows.to_arrow_reader(65_536):
            shown = [path.decode("utf-8", "backslashreplace") for path in batch["path_bytes"].to_pylist()]
            yield batch.append_column("path", pa.array(shown, pa.string()))

    def _read(self, table: str, parquet: Path) -> None:
        schema = CATALOG if table == "old" else None  # of an older version: what it lacks is null
        self._db.register(table, ds.dataset(parquet, schema, format="parquet"))

    def _stream(self, query: str) -> Iterator[tuple]:
        rows = self._db.cursor().execute(query)
        while some := rows.fetchmany(4096):
            yield from some
