"""One corpus's columns joined and checked, and each segment kept or left out with a reason."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from stages.pretrain.data.corpora import THREADS, PinnedCorpus, first_line
from stages.pretrain.data.settings import Data
from stages.shards import column, scratch, storage, tables
from stages.signal.rates import RATE_HZ

MEMORY_GB = 2.0
Labels = list[tuple[str, int, np.dtype]]  # as `Facts.labels`


def join(corpus: PinnedCorpus, data: Data, first: int, labels: Labels) -> Iterator[pa.RecordBatch]:
    """Every segment in (shard, key) order, with the columns of `index.ROWS` but `ends_R` and `codes_RC`, key,
    valid, dropped (reason, or null), and at0 …: the places of the frames in each label column.

    `first`: number of the first shard. ValueError names shard and column where keys, frame counts or bytes
    disagree, and a wrong `data.where`."""
    reasons = [
        (f"a.samples < {data.samples}", "shorter than a crop"),
        (f"a.samples < {data.min_segment_s * RATE_HZ}", "data.min_segment_s"),
    ]
    statistics = []
    for field, sign in (("min_rms_db", "<"), ("max_silence", ">"), ("max_clipping", ">")):
        if (limit := getattr(data, field)) is not None:
            statistics.append(field[4:])
            reasons.append((f"s.{field[4:]} {sign} {limit}", f"data.{field}"))
    if data.where:
        reasons.append(("NOT s.wanted", "data.where"))
    with contextlib.ExitStack() as stack:
        spill = stack.enter_context(scratch.directory())
        db = stack.enter_context(contextlib.closing(tables.connect(Path(spill), MEMORY_GB)))
        _load(db, corpus, stack)
        _check_labels(db, corpus, labels)
        filtered = bool(statistics or data.where)
        if filtered:
            _load_statistics(db, corpus, statistics, data.where, stack)
        numbers = range(first, first + len(corpus.shards))
        db.register("shards", pa.table({"shard": corpus.shards, "number": numbers}))
        crops = data.crops_per_segment or f"a.samples // {data.samples}"
        yield from db.sql(_query(corpus, reasons, filtered, crops)).to_arrow_reader(1 << 17)


def _load(db: duckdb.DuckDBPyConnection, corpus: PinnedCorpus, stack: contextlib.ExitStack) -> None:
    """Tables `plan` and `idx`: that of OUT, and own indexes of shards that it does not hold whole."""
    rows = [(name, shard, record.segments) for (name, shard), record in corpus.records.items()]
    names, shards, segments = zip(*rows, strict=True)
    db.register("expected", pa.table({"column": names, "shard": shards, "segments": segments}))
    fields = pa.schema([*storage.fields(pa.string(), "column shard"), *column.INDEX])
    db.register("stored", fields.empty_table())
    stored = "stored"
    with contextlib.suppress(FileNotFoundError):
        stored, _ = tables.gathered(db, corpus.storage, "index", stack)
    db.execute(f'CREATE TABLE idx AS FROM {stored} SEMI JOIN expected USING ("column", shard)')
    short = db.execute(
        """SELECT "column", shard FROM expected
        LEFT JOIN (SELECT "column", shard, count(*) n FROM idx GROUP BY ALL) USING ("column", shard)
        WHERE n IS DISTINCT FROM segments"""
    ).fetchall()
    if short:
        with ThreadPoolExecutor(THREADS) as pool:
            db.register("own", pa.concat_tables(pool.map(lambda place: _own_index(corpus, *place), short)))
        db.execute('DELETE FROM idx WHERE ("column", shard) IN (SELECT ("column", shard) FROM own)')
        db.execute("INSERT INTO idx BY NAME FROM own")
    if not corpus.storage.exists("plan.parquet"):
        raise ValueError(
            f"{corpus.storage.root} has no plan.parquet, which states what is held out: run `overtone "
            "labels` again"
        )
    plan = _parquet(corpus, "plan.parquet", stack)
    db.execute(f"CREATE TABLE plan AS SELECT recording, shard, split, tombstone FROM {plan}")


def _own_index(corpus: PinnedCorpus, name: str, shard: str) -> pa.Table:
    table, expected = column.read_index(corpus.storage, name, shard), corpus.records[name, shard].segments
    if len(table) != expected:
        what = f"has an index of {len(table)} segments, its record has {expected}"
        raise corpus.damaged(name, shard, what)
    for title, value in (("column", name), ("shard", shard)):
        table = table.append_column(title, pa.array([value] * len(table), pa.string()))
    return table


def _parquet(corpus: PinnedCorpus, name: str, stack: contextlib.ExitStack) -> str:
    return f"read_parquet({tables.quoted(str(stack.enter_context(corpus.storage.fetched(name))))})"


def _check_labels(db: duckdb.DuckDBPyConnection, corpus: PinnedCorpus, labels: Labels) -> None:
    """A label column has the audio's keys, with the same frames, but for recordings that its records reject,
    and as many bytes as its frames have."""
    differences = """
        SELECT coalesce(a.shard, c.shard), coalesce(a.key, c.key), a.recording, a.frames, c.frames,
            c."offset" + c.size - c.data_offset AS bytes
        FROM (FROM idx WHERE "column" = ?) a FULL JOIN (FROM idx WHERE "column" = ?) c
        ON a.shard = c.shard AND a.key = c.key WHERE a.frames IS DISTINCT FROM c.frames
        OR a.samples IS DISTINCT FROM c.samples OR a.start IS DISTINCT FROM c.start
        OR bytes != c.frames * ? ORDER BY ALL"""
    for name, values, dtype in labels:
        width = values * dtype.itemsize
        found = db.execute(differences, [corpus.audio, name, width]).fetchall()
        for shard, key, recording, expected, frames, size in found:
            rejects = corpus.records[name, shard].rejects
            if frames is None and any(r["recording"] == recording for r in rejects):
                continue
            what = f"has {size} bytes at {key}, expected {frames} frames of {width}"
            if frames is None:
                what = f"lacks the key {key}"
            elif expected is None:
                what = f"has the key {key}, which {corpus.audio} lacks"
            elif frames != expected:
                what = f"has {frames} frames at {key}, {corpus.audio} {expected}"
            elif size == frames * width:
                what = f"has other samples at {key} than {corpus.audio}"
            raise corpus.damaged(name, shard, what)


def _load_statistics(
    db: duckdb.DuckDBPyConnection, corpus: PinnedCorpus, names: list[str], where: str | None, stack
) -> None:
    """Table `stats`: for each segment these columns, and `wanted`, the truth of `where`."""
    root = corpus.storage.root
    try:
        table, paths = tables.gathered(db, corpus.storage, "segments", stack)
    except FileNotFoundError:
        raise ValueError(
            f"{root} has no segments.parquet, which data.where and the filters read: run `overtone labels` "
            "to its end"
        ) from None
    tables.lock(db, paths, corpus.storage)
    columns = "".join(f"{name}, " for name in names)
    try:  # of several recipes' rows of one segment, those of the columns in use
        db.execute(
            f"""CREATE TABLE stats AS SELECT shard, key, {columns}coalesce({where or "true"}, false) AS wanted
            FROM {table} QUALIFY row_number() OVER (PARTITION BY shard, key ORDER BY columns = ? DESC) = 1""",
            [" ".join(corpus.columns)],
        )
    except duckdb.Error as error:
        raise ValueError(
            f"data.where is {where!r}: {first_line(error)} (the columns are those of {root}/segments.parquet)"
        ) from None
    missing = db.execute(
        """SELECT shard FROM (FROM idx WHERE "column" = ?) ANTI JOIN stats USING (shard, key)
        SEMI JOIN (FROM plan WHERE tombstone IS NULL) p USING (recording, shard) LIMIT 1""",
        [corpus.audio],
    ).fetchone()
    if missing:
        raise ValueError(
            f"{root}: segments.parquet has no row for some of {missing[0]}, which the filters need: run "
            "`overtone labels` to its end"
        )


def _query(corpus: PinnedCorpus, reasons: list[tuple[str, str]], filtered: bool, crops: int | str) -> str:
    """The first of `reasons` (condition, reason) that holds drops a segment."""
    places = joins = ""
    missing = []
    for i, name in enumerate(corpus.labels):
        places += f", coalesce(c{i}.data_offset, -1) AS at{i}"
        joins += f" LEFT JOIN (FROM idx WHERE \"column\" = '{name}') c{i}"
        joins += f" ON a.shard = c{i}.shard AND a.key = c{i}.key"
        missing.append((f"c{i}.key IS NULL", f"rejected by {name}"))
    if filtered:
        joins += " LEFT JOIN stats s ON a.shard = s.shard AND a.key = s.key"
    cases = "".join(f" WHEN {test} THEN '{reason}'" for test, reason in missing + reasons)
    return f"""
        SELECT n.number AS shard_R, a.start AS start_R, a.samples AS samples_R{places}, a.key,
            CASE WHEN a.data_offset >= 0 THEN a.data_offset ELSE a."offset" END AS audio_R,
            CASE WHEN a.data_offset >= 0 THEN 0 ELSE a.size END AS packed_R,
            coalesce(p.split = 'valid', false) AS valid,
            CASE WHEN p.recording IS NULL THEN 'not in the plan any more'
            WHEN p.tombstone IS NOT NULL THEN 'tombstone: ' || p.tombstone{cases} END AS dropped,
            CASE WHEN valid OR dropped IS NOT NULL THEN 0 ELSE least({crops}, 65535) END AS crops_R
        FROM (FROM idx WHERE "column" = '{corpus.audio}') a JOIN shards n ON a.shard = n.shard{joins}
        LEFT JOIN plan p ON a.recording = p.recording AND a.shard = p.shard ORDER BY a.shard, a.key"""
