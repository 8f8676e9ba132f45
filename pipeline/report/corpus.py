"""An OUT as a database: its gathered tables as DuckDB views, whatever version of labels wrote them.

`segments` has a row a segment, `named` the same with the path and split of its recording, `shards` a row
a shard and column, `rejected` a row a rejected file. Statistics an older OUT lacks are there as NULL.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from pipeline.labelling import registry
from pipeline.labelling.registry import Registry
from stages.shards import tables
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

# DuckDB's share; the whole answer stays under 2 GiB at 50,000 shards (D tests/bench/bench_stats.py)
MEMORY_GB = 1.2
STATISTICS = {  # statistics of a segment's row and their types; those missing from a file read as NULL
    # an OUT whose files were all rejected lacks these too
    "index": "BIGINT",
    "start": "BIGINT",
    "frames": "BIGINT",
    "peak_db": "DOUBLE",
    "rms_db": "DOUBLE",
    "lufs": "DOUBLE",
    "silence": "DOUBLE",
    "clipping": "DOUBLE",
    "dc": "DOUBLE",
    "bandwidth_hz": "DOUBLE",
    "stereo": "DOUBLE",
    "code_entropy_bits": "DOUBLE[]",
    "codes_used": "BIGINT[]",
    "cqt_max": "DOUBLE",
    "cqt_mean": "DOUBLE",
    "cqt_octaves": "DOUBLE[]",
    "tuning_cents": "DOUBLE",
    "tuning_strength": "DOUBLE",
    "fingerprint": "VARCHAR",
    "source_rate_hz": "BIGINT",
    "source_channels": "BIGINT",
    "source_codec": "VARCHAR",
    "source_container": "VARCHAR",
    "damaged_packets": "BIGINT",
    "header_s": "DOUBLE",
    "decoded_s": "DOUBLE",
}
REGATHER = (
    "delete index.parquet, segments.parquet and shards.parquet there and run the same `labels` "
    "again, which gathers them anew"
)
REMEDIES = {
    "segments.parquet": REGATHER,
    "shards.parquet": REGATHER,
    "plan.parquet": "restore it, or use another OUT",
    "rejected.parquet": "delete it and run the same `labels` again, which writes it anew",
}
OF_SHARDS = {
    "attempts": "BIGINT",
    "rejects": "VARCHAR",
    "slowest": "STRUCT(recording VARCHAR, seconds DOUBLE, times_real_time DOUBLE)[]",
}


@dataclass
class Corpus:
    """Read-only; close it, or use `opened`."""

    place: str
    out: Storage
    registry: Registry
    db: duckdb.DuckDBPyConnection
    missing: list[str] = field(default_factory=list)  # statistics this OUT never gathered

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """The answer of a query of ours as dicts."""
        cursor = self.db.execute(query, list(values))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def one(self, query: str, *values: Any) -> dict[str, Any]:
        return self.rows(query, *values)[0]

    def query(self, query: str) -> list[dict[str, Any]]:
        """The answer of a query with the user's own SQL in it; ValueError in DuckDB's words."""
        try:
            return self.rows(query)
        except duckdb.Error as error:
            raise ValueError(f"--where is no condition on segments: {str(error).strip()}") from None


@contextlib.contextmanager
def opened(place: str) -> Iterator[Corpus]:
    """Raises ValueError when `place` holds no labels, none are gathered yet, or a gathered table is
    damaged."""
    out = Storage(place)
    known = registry.existing(out)
    for name in ("segments.parquet", "shards.parquet", "plan.parquet"):
        if not out.exists(name):
            raise ValueError(
                f"{place} holds no {name}: it is written when a `labels` run ends (see overtone "
                f"status {place})"
            )
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="overtone-"))
        db = stack.enter_context(contextlib.closing(tables.connect(Path(scratch), MEMORY_GB)))
        corpus = Corpus(place, out, known, db)
        files = {
            name: str(stack.enter_context(out.fetched(f"{name}.parquet")))
            for name in ("segments", "shards", "plan", "rejected")
            if out.exists(f"{name}.parquet")
        }
        for name, path in files.items():
            _check(corpus, f"{name}.parquet", path)
        _segments(corpus, files["segments"])
        _shards(corpus, files["shards"])
        db.execute(
            "CREATE TABLE planned AS SELECT recording, last(path) AS path, last(split) AS split "
            f"FROM {_file(files['plan'])} GROUP BY recording"
        )
        db.execute(
            "CREATE VIEW named AS SELECT s.*, p.path, p.split FROM segments s LEFT JOIN planned p "
            "USING (recording)"
        )
        rejected = (
            _file(files["rejected"])
            if "rejected" in files
            else "(SELECT '' AS stage, '' AS path, '' AS reason WHERE false)"
        )
        db.execute(f"CREATE VIEW rejected AS SELECT stage, reason, path FROM {rejected}")
        yield corpus


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _file(path: str) -> str:
    return f"read_parquet({quoted(path)})"


def _check(corpus: Corpus, name: str, path: str) -> None:
    try:
        _columns(corpus, path)
    except duckdb.Error as error:
        raise ValueError(
            f"{corpus.place}/{name} is damaged ({str(error).splitlines()[0]}): {REMEDIES[name]}"
        ) from None


def _columns(corpus: Corpus, path: str) -> dict[str, str]:
    return {
        row["column_name"]: row["column_type"] for row in corpus.rows(f"DESCRIBE SELECT * FROM {_file(path)}")
    }


def _segments(corpus: Corpus, path: str) -> None:
    there = _columns(corpus, path)
    corpus.missing = [name for name in STATISTICS if name not in there]
    # A statistic that was NULL in all rows has no type of its own in the file.
    fields = [
        f'"{name}"::{kind} AS "{name}"' if name in there else f'NULL::{kind} AS "{name}"'
        for name, kind in STATISTICS.items()
    ]
    others = [f'"{name}"' for name in there if name not in STATISTICS and name != "columns"]
    own = f"WHERE columns = {quoted(' '.join(corpus.registry.names))}" if "columns" in there else ""
    corpus.db.execute(
        f"CREATE VIEW segments AS SELECT {', '.join(others + fields)}, samples / {RATE_HZ}.0 AS length_s, "
        f"list_avg(code_entropy_bits) AS entropy_bits FROM {_file(path)} {own}"
    )


def _shards(corpus: Corpus, path: str) -> None:
    there = _columns(corpus, path)
    fields = [name if name in there else f"NULL::{kind} AS {name}" for name, kind in OF_SHARDS.items()]
    own = ", ".join(map(quoted, corpus.registry.names))
    corpus.db.execute(
        'CREATE TABLE shards AS SELECT shard, "column", inputs, kept, rejected, segments, samples, '
        "frames, bytes, host, "
        f"started::DOUBLE AS started, wall_s::DOUBLE AS wall_s, busy_s::DOUBLE AS busy_s, "
        f"{', '.join(fields)}, "
        f"samples / {RATE_HZ}.0 / 3600 AS hours, samples / {RATE_HZ}.0 / nullif(wall_s, 0) AS "
        f"times_real_time, "
        "CASE WHEN \"column\" LIKE 'audio%' THEN 'decode' ELSE split_part(\"column\", '-', 1) END AS stage "
        f'FROM {_file(path)} WHERE "column" IN ({own})'
    )
