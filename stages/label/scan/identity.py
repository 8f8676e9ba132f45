"""Which recording is each file? Joins a listing with the previous catalog, out of core, in DuckDB.

Files flow: listing → (unchanged, or probed) → ids → duplicates → catalog. A file's whole sha256 is
read only where ids or duplicates hang on it.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from stages.label.scan.probing import UNREADABLE
from stages.shards.catalog import CATALOG
from stages.shards.tables import connect

LISTING = pa.schema(
    [
        ("path_bytes", pa.binary()),
        ("name_bytes", pa.binary()),
        ("root", pa.string()),
        ("root_order", pa.int64()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("problem", pa.string()),
        ("excluded", pa.bool_()),
    ]
)
PROBED = pa.schema(
    [
        ("path_bytes", pa.binary()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("quick", pa.string()),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("rate_hz", pa.int64()),
        ("channels", pa.int64()),
        ("duration_s", pa.float64()),
        ("reason", pa.string()),
        ("base", pa.string()),  # the id by name, size and quick hash
        ("known_sha", pa.string()),  # sha256 of the bytes that were labelled under that id
    ]
)
HASHED = pa.schema([("path_bytes", pa.binary()), ("sha256", pa.string()), ("error", pa.string())])

# One row per path: two roots may reach the same file. A path keeps the name it was first given, and
# so its id, though the root be given differently today.
_LISTED = """
CREATE TABLE listed AS SELECT l.path_bytes, coalesce(o.name_bytes, l.name_bytes) AS name_bytes, l.root,
    l.size, l.mtime_ns, l.problem, bool_or(l.excluded) OVER (PARTITION BY l.path_bytes) AS excluded,
    o.path_bytes IS NOT NULL AND NOT l.excluded AND l.problem IS NULL
        AND o.size = l.size AND o.mtime_ns = l.mtime_ns AND o.status <> 'excluded'
        AND NOT (o.status = 'rejected' AND (starts_with(o.reason, $unreadable)
            OR coalesce($retry = 'all' OR contains(o.reason, $retry), false))) AS unchanged
FROM listing l LEFT JOIN old o USING (path_bytes)
QUALIFY row_number() OVER (PARTITION BY l.path_bytes ORDER BY l.root_order, l.name_bytes) = 1
"""

# How each row gets its id: `rule`.
#   same     path, size and mtime as before: nothing was read
#   moved    another path, but name, content hash and mtime of exactly one file that is gone
#   touched  path, size and quick hash as before, another mtime: the middle may differ
#   known    bytes were labelled under this id before: they must be the same ones
#   new
_ROWS = """
CREATE TABLE gone AS SELECT name_bytes, size, quick, mtime_ns, any_value(recording) AS recording,
    any_value(sha256) AS sha256 FROM old
    WHERE status IN ('kept', 'duplicate') AND path_bytes NOT IN (SELECT path_bytes FROM listed)
    GROUP BY ALL HAVING count(*) = 1;
CREATE TABLE rows AS
SELECT o.path_bytes, l.root, o.name_bytes, o.size, o.mtime_ns, o.quick, o.sha256, o.container, o.codec,
    o.rate_hz, o.channels, o.duration_s, CASE WHEN o.status = 'rejected' THEN o.reason END AS reason,
    'same' AS rule, o.recording AS base, o.recording AS old_recording, o.sha256 AS old_sha,
    NULL::VARCHAR AS known_sha, o.status = 'kept' AS was_kept
FROM listed l JOIN old o USING (path_bytes) WHERE l.unchanged
UNION ALL BY NAME
SELECT f.path_bytes, l.root, l.name_bytes, f.size, f.mtime_ns, f.quick,
    CASE WHEN t.path_bytes IS NULL THEN g.sha256 END AS sha256, f.container, f.codec,
    f.rate_hz, f.channels, f.duration_s, f.reason,
    CASE WHEN t.path_bytes IS NOT NULL THEN 'touched' WHEN g.recording IS NOT NULL THEN 'moved'
        WHEN f.known_sha IS NOT NULL THEN 'known' ELSE 'new' END AS rule,
    f.base, coalesce(t.recording, g.recording) AS old_recording, t.sha256 AS old_sha, f.known_sha,
    coalesce(t.status = 'kept', g.recording IS NOT NULL) AS was_kept
FROM probed f JOIN listed l USING (path_bytes)
LEFT JOIN old t ON t.path_bytes = f.path_bytes AND t.size = f.size AND t.quick = f.quick
    AND t.status IN ('kept', 'duplicate')
LEFT JOIN gone g ON g.name_bytes = l.name_bytes AND g.size = f.size AND g.quick = f.quick
    AND g.mtime_ns = f.mtime_ns
"""

_TO_HASH = """
SELECT path_bytes FROM rows WHERE reason IS NULL AND sha256 IS NULL AND (rule IN ('touched', 'known')
    OR (size, quick) IN (SELECT (size, quick) FROM rows WHERE reason IS NULL
        GROUP BY size, quick HAVING count(*) > 1))
ORDER BY path_bytes
"""

# `probe.recording_id`, spelt for DuckDB.
_ZERO = "'\\x00'::BLOB"
_ID = f"substr(sha256(name_bytes || {_ZERO} || encode(size::VARCHAR) || {_ZERO} || encode(%s)), 1, 16)"
_SHA_ID = _ID % f"quick) || {_ZERO} || encode(sha256"
_NO_CONTENT_ID = _ID % "''"

# The base id belongs to the content that had it first: another content gets an id with its sha256.
_SETTLED = f"""
CREATE TABLE settled AS WITH hashes AS (
    SELECT rows.* EXCLUDE (sha256, reason), coalesce(rows.sha256, h.sha256) AS sha256,
        coalesce(rows.reason, h.error) AS reason
    FROM rows LEFT JOIN hashed h USING (path_bytes)
), named AS (
    SELECT *, CASE
        WHEN reason IS NOT NULL THEN base
        WHEN rule IN ('same', 'moved') THEN old_recording
        WHEN rule = 'touched' AND old_recording = base THEN
            CASE WHEN coalesce(known_sha, old_sha, sha256) = sha256 THEN base ELSE {_SHA_ID} END
        WHEN rule IN ('touched', 'known') THEN CASE WHEN known_sha = sha256 THEN base ELSE {_SHA_ID} END
        ELSE base END AS recording
    FROM hashes
), copies AS (
    SELECT *, was_kept AND recording = old_recording AS first,
        row_number() OVER w AS copy, first_value(path_bytes) OVER w AS original
    FROM named WHERE reason IS NULL
    WINDOW w AS (PARTITION BY size, quick, coalesce(sha256, hex(path_bytes))
        ORDER BY (was_kept AND recording = old_recording) DESC, path_bytes)
)
SELECT * REPLACE (CASE WHEN copy = 1 AND row_number() OVER
        (PARTITION BY recording, copy = 1 ORDER BY first DESC, rule <> 'same', path_bytes) > 1
    THEN {_SHA_ID} ELSE recording END AS recording)
FROM copies
UNION ALL BY NAME
SELECT *, false AS first, 0 AS copy, NULL::BLOB AS original FROM named WHERE reason IS NOT NULL
"""

_CATALOG = f"""
SELECT s.*, CASE s.copy WHEN 0 THEN 'rejected' WHEN 1 THEN 'kept' ELSE 'duplicate' END AS status,
    CASE WHEN s.copy > 1 THEN k.recording END AS duplicate_of
FROM settled s LEFT JOIN settled k ON s.copy > 1 AND k.path_bytes = s.original
UNION ALL BY NAME
SELECT path_bytes, root, name_bytes, size, mtime_ns, problem AS reason, 'rejected' AS status, 0 AS rate_hz,
    0 AS channels, 0.0 AS duration_s, {_NO_CONTENT_ID} AS recording
FROM listed WHERE problem IS NOT NULL AND NOT excluded
UNION ALL BY NAME
SELECT path_bytes, root, name_bytes, size, mtime_ns, 'excluded' AS status, 0 AS rate_hz, 0 AS channels,
    0.0 AS duration_s FROM listed WHERE excluded
"""


class Identity:
    """One scan's tables. Parquet files go in, the catalog's rows come out."""

    def __init__(self, listing: Path, previous: Path | None, scratch: Path, retry_rejected: str | None):
        """`previous`: a catalog, checked by the caller."""
        self._db = connect(scratch, memory_gb=1)
        if previous is not None and previous.exists():
            self._db.register("old", ds.dataset(previous, format="parquet"))
        else:
            self._db.register("old", CATALOG.empty_table())
        self._db.register("listing", ds.dataset(listing, format="parquet"))
        self._db.execute(_LISTED, {"unreadable": UNREADABLE, "retry": retry_rejected}).fetchall()

    def __enter__(self) -> "Identity":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def counts(self) -> tuple[int, int]:
        """(files to be probed, unchanged files)."""
        to_probe = "problem IS NULL AND NOT excluded AND NOT unchanged"
        query = f"SELECT count(*) FILTER ({to_probe}), count(*) FILTER (unchanged) FROM listed"
        return self._db.execute(query).fetchall()[0]

    def to_probe(self) -> Iterator[tuple[bytes, bytes, int, int]]:
        """(path, name, size, mtime) of each new or changed file."""
        return self._stream(
            "SELECT path_bytes, name_bytes, size, mtime_ns FROM listed"
            " WHERE problem IS NULL AND NOT excluded AND NOT unchanged ORDER BY path_bytes"
        )

    def to_hash(self, probed: Path) -> Iterator[tuple[bytes]]:
        """Paths whose whole content decides an id or a duplicate."""
        self._db.register("probed", ds.dataset(probed, format="parquet"))
        self._db.execute(_ROWS).fetchall()
        return self._stream(_TO_HASH)

    def catalog(self, hashed: Path) -> Iterator[pa.RecordBatch]:
        """The new catalog's rows, sorted by `path_bytes`."""
        self._db.register("hashed", ds.dataset(hashed, format="parquet"))
        self._db.execute(_SETTLED).fetchall()
        names = [name for name in CATALOG.names if name != "path"]
        rows = self._db.sql(f"SELECT {', '.join(names)} FROM ({_CATALOG}) ORDER BY path_bytes")
        for batch in rows.to_arrow_reader(65_536):
            shown = [path.decode("utf-8", "backslashreplace") for path in batch["path_bytes"].to_pylist()]
            yield batch.append_column("path", pa.array(shown, pa.string()))

    def _stream(self, query: str) -> Iterator[tuple]:
        rows = self._db.cursor().execute(query)
        while some := rows.fetchmany(4096):
            yield from some
