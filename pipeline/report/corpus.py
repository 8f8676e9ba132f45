"""An OUT as a database, whatever version wrote it. `segments` has a row a segment, `named` its recording's
path and split too, `shards` a row a shard and column, `rejected` a row a file. Statistics that an older OUT
lacks are NULL."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.labelling import registry
from stages.shards import parts, scratch, tables
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

# DuckDB's; the whole command stays under 2 GiB at 50,000 shards (D tests/bench/bench_stats.py)
MEMORY_GB = 1.2
# An OUT whose files were all rejected lacks `index`, `start` and `frames` too.
STATISTICS = {
    name: kind
    for kind, names in (
        ("BIGINT", "index start frames source_rate_hz source_channels damaged_packets"),
        ("DOUBLE", "peak_db rms_db lufs silence clipping dc bandwidth_hz stereo cqt_max cqt_mean"),
        ("DOUBLE", "tuning_cents tuning_strength header_s decoded_s"),
        ("DOUBLE[]", "code_entropy_bits cqt_octaves"),
        ("BIGINT[]", "codes_used"),
        ("VARCHAR", "fingerprint source_codec source_container"),
    )
    for name in names.split()
}
OF_SHARDS = {
    "attempts": "BIGINT",
    "rejects": "VARCHAR",
    "slowest": "STRUCT(recording VARCHAR, seconds DOUBLE, times_real_time DOUBLE)[]",
}
# Of `segments` or `named`.
HOURS = "coalesce(sum(length_s), 0) / 3600 AS hours"
AMOUNT = f"count(*) AS segments, count(DISTINCT recording) AS recordings, {HOURS}"
REGATHER = (
    "move index.parquet, segments.parquet, shards.parquet and the folder tables away and run the same "
    "`labels` again, which gathers them anew"
)
GATHERED = ("segments", "shards")
REMEDIES = dict.fromkeys(GATHERED, REGATHER) | {
    "plan": "restore it from a copy, or use another OUT",
    "rejected": "run the same `labels` again, which writes it anew",
}
Row = dict[str, Any]


@dataclass
class Corpus:
    place: str
    out: Storage
    registry: registry.Registry
    db: duckdb.DuckDBPyConnection
    missing: list[str] = field(default_factory=list)  # statistics that were not gathered

    def rows(self, query: str, *values: Any) -> list[Row]:
        return as_dicts(self.db.execute(query, list(values)))

    def one(self, query: str, *values: Any) -> Row:
        return self.rows(query, *values)[0]

    def query(self, query: str) -> list[Row]:
        """Of the user's own SQL."""
        try:
            return self.rows(query)
        except duckdb.Error as error:
            raise ValueError(f"--where is no condition on segments: {str(error).strip()}") from None


def as_dicts(cursor: duckdb.DuckDBPyConnection) -> list[Row]:
    names = [name for name, *_ in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@contextlib.contextmanager
def opened(place: str) -> Iterator[Corpus]:
    """ValueError when `place` holds no labels, none are gathered yet, or a table is damaged."""
    out, files, paths = Storage(place), {}, []
    known = registry.existing(out)
    for name in ("segments", "shards", "plan"):
        if not (parts.present(out, name) if name in GATHERED else out.exists(f"{name}.parquet")):
            raise ValueError(
                f"{place} holds no {name}.parquet: it is written when a `labels` run ends (see overtone "
                f"status {place})"
            )
    with contextlib.ExitStack() as stack:
        spill = stack.enter_context(scratch.directory())
        db = stack.enter_context(tables.connect(Path(spill), MEMORY_GB))
        corpus = Corpus(place, out, known, db)
        for name in REMEDIES:
            if name not in GATHERED and not out.exists(f"{name}.parquet"):
                continue
            try:
                if name in GATHERED:
                    table, own = tables.gathered(db, out, name, stack)
                else:
                    own = [str(stack.enter_context(out.fetched(f"{name}.parquet")))]
                    table = f"read_parquet({tables.quoted(own[0])})"
                columns = corpus.rows(f"DESCRIBE SELECT * FROM {table}")
            except (duckdb.Error, pa.ArrowInvalid) as error:
                why = str(error).splitlines()[0]
                raise ValueError(f"{place}/{name}.parquet is damaged ({why}): {REMEDIES[name]}") from None
            files[name] = table, [row["column_name"] for row in columns]
            paths += own
        _segments(corpus, *files["segments"])
        _shards(corpus, *files["shards"])
        rejected, *_ = files.get("rejected", ("(SELECT '' AS stage, '' AS path, '' AS reason WHERE false)",))
        db.execute(
            f"""CREATE TABLE planned AS SELECT recording, last(path) AS path, last(split) AS split
            FROM {files["plan"][0]} GROUP BY recording;
            CREATE VIEW named AS SELECT s.*, p.path, p.split FROM segments s LEFT JOIN planned p
            USING (recording);
            CREATE VIEW rejected AS SELECT stage, reason, path FROM {rejected}"""
        )
        tables.lock(db, paths, out)
        yield corpus


def _segments(corpus: Corpus, table: str, names: list[str]) -> None:
    corpus.missing = [name for name in STATISTICS if name not in names]
    fields = [f'"{name}"' for name in names if name not in STATISTICS and name != "columns"]
    # A statistic that was NULL in all rows has no type of its own in the file.
    for name, kind in STATISTICS.items():
        value = "NULL" if name in corpus.missing else f'"{name}"'
        fields.append(f'{value}::{kind} AS "{name}"')
    current = (
        f"WHERE columns = {tables.quoted(' '.join(corpus.registry.names))}" if "columns" in names else ""
    )
    corpus.db.execute(
        f"CREATE VIEW segments AS SELECT {', '.join(fields)}, samples / {RATE_HZ}.0 AS length_s, "
        f"list_avg(code_entropy_bits) AS entropy_bits FROM {table} {current}"
    )


def _shards(corpus: Corpus, table: str, names: list[str]) -> None:
    fields = [name if name in names else f"NULL::{kind} AS {name}" for name, kind in OF_SHARDS.items()]
    fields += [f"{name}::DOUBLE AS {name}" for name in ("started", "wall_s", "busy_s")]
    current = ", ".join(map(tables.quoted, corpus.registry.names))
    corpus.db.execute(
        f"""CREATE TABLE shards AS SELECT shard, "column", inputs, kept, rejected, segments, samples, frames,
        bytes, host, {", ".join(fields)}, samples / {RATE_HZ}.0 / 3600 AS hours,
        samples / {RATE_HZ}.0 / nullif(wall_s, 0) AS times_real_time,
        CASE WHEN "column" LIKE 'audio%' THEN 'decode' ELSE split_part("column", '-', 1) END AS stage
        FROM {table} WHERE "column" IN ({current})"""
    )
