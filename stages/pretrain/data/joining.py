"""One corpus's columns joined by shard and key, checked, and each segment kept or left out with a reason."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import yaml

from stages.pretrain.data.settings import Data
from stages.shards import catalog, column
from stages.shards import record as records
from stages.shards.record import Record
from stages.shards.storage import Storage
from stages.shards.tables import connect
from stages.signal.rates import RATE_HZ

THREADS = 16  # that read records: what a store or a network disk takes is waiting
MEMORY_GB = 2.0


@dataclass(frozen=True)
class Corpus:
    """The finished shards of one OUT and the columns a run uses of it."""

    storage: Storage
    audio: str
    codes: tuple[str, ...]
    cqt: str | None
    shards: tuple[str, ...] = ()
    records: dict[tuple[str, str], Record] = field(default_factory=dict)  # (column, shard)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.codes + ((self.cqt,) if self.cqt else ())

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.audio, *self.labels)


def find(root: str, data: Data, previous: tuple[str, list[str]] | None) -> Corpus:
    """The corpus below `root`; `previous`: (audio column, shards) a run was begun with. ValueError says what
    is missing."""
    try:
        storage = Storage(root)
        said = yaml.safe_load(storage.read("recipe.yaml"))
        known, current = said["columns"], said["current"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(
            f"data.corpora: {root} cannot be read as labels ({_first(error)}): "
            f"give the OUT of an `overtone labels` run that every rank can see"
        ) from None
    audio = previous[0] if previous else current["audio"]
    codes = data.codes or ((current["codes"],) if "codes" in current else ())
    cqt = current.get("cqt") if data.cqt == "column" else data.cqt if data.cqt.startswith("cqt-") else None
    if data.cqt == "column" and cqt is None:
        raise ValueError(
            f"data.cqt is column, and {root} has none: label with recipe.cqt, or set data.cqt to "
            f"online or none"
        )
    corpus = Corpus(storage, audio, tuple(codes), cqt)
    for name in corpus.columns:
        if name not in known:
            raise ValueError(f"data.codes or data.cqt names {name}, {root} has {', '.join(sorted(known))}")
    corpus = _with_shards(corpus, previous[1] if previous else None)
    _check_records(corpus, known)
    return corpus


def _with_shards(corpus: Corpus, pinned: list[str] | None) -> Corpus:
    finished = {name: records.finished(corpus.storage, name) for name in corpus.columns}
    shards = sorted(pinned if pinned is not None else set.intersection(*finished.values()))
    root = corpus.storage.root
    if not shards:
        raise ValueError(
            f"data.corpora: {root} has no shard that is finished in {', '.join(corpus.columns)}: run "
            f"`overtone labels` to its end"
        )
    for name, there in finished.items():
        gone = [s for s in shards if s not in there]
        if gone:
            raise ValueError(
                f"{root}: {len(gone)} pinned shards are not finished in {name} any more, first {gone[0]}: "
                f"run `overtone labels` again, or go on without them with --set resume.allow=data"
            )
    wanted = [(name, shard) for name in corpus.columns for shard in shards]
    with ThreadPoolExecutor(THREADS) as pool:
        read = pool.map(lambda place: records.read(corpus.storage, *place), wanted)
        found = dict(zip(wanted, read, strict=True))
    return Corpus(corpus.storage, corpus.audio, corpus.codes, corpus.cqt, tuple(shards), found)


def _check_records(corpus: Corpus, known: dict[str, dict]) -> None:
    """Every record is of the recipe that its column's name stands for, and its labels of the audio that is
    there."""
    own = {name: records.recipe8(known[name]) for name in corpus.columns}
    for (name, shard), record in corpus.records.items():
        seen = records.recipe8(record.recipe)
        if seen != own[name]:
            raise ValueError(
                f"{corpus.storage.root}: {name}/{shard} was made by recipe {seen}, {name} is {own[name]}: "
                f"`overtone verify --repair`, then label again"
            )
        audio = corpus.records[corpus.audio, shard]
        if name != corpus.audio and record.source_sha256 != audio.sha256:
            raise ValueError(
                f"{corpus.storage.root}: {name}/{shard} was made from another {corpus.audio} tar than the "
                "one that is there: `overtone verify --repair`, then label again"
            )


def live_digest(corpus: Corpus) -> str:
    """Of the recordings of these shards that are in use: changes when one of them is tombstoned."""
    with corpus.storage.fetched("plan.parquet") as path:
        plan = catalog.live(catalog.read_plan(path, ["recording", "shard", "tombstone"]))
    mine = pa.compute.is_in(plan["shard"], pa.array(corpus.shards, pa.string()))
    names = pa.compute.sort_indices(plan["recording"].filter(mine))
    return hashlib.sha256(
        "\n".join(plan["recording"].filter(mine).take(names).to_pylist()).encode()
    ).hexdigest()


def join(corpus: Corpus, data: Data) -> Iterator[pa.RecordBatch]:
    """Rows of every segment in (shard, key) order.

    Columns: shard, key, recording, start, samples, frames, audio_at, packed (bytes of a compressed member,
    else 0), at0 … (place of the frames in each label column), bytes0 … (of them), valid, dropped (reason, or
    null). ValueError names shard and column where keys or frame counts disagree, and a wrong `data.where`.
    """
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="overtone-"))
        db = stack.enter_context(contextlib.closing(connect(Path(scratch), MEMORY_GB)))
        _load(db, corpus, stack)
        _check_keys(db, corpus)
        yield from db.sql(_select(corpus, data, _statistics(db, corpus, data, stack))).to_arrow_reader(
            1 << 17
        )


def _load(db: duckdb.DuckDBPyConnection, corpus: Corpus, stack: contextlib.ExitStack) -> None:
    """Tables `plan` and `idx`: OUT/index.parquet, and for shards it does not hold whole their own indexes."""
    rows = [(name, shard, record.segments) for (name, shard), record in corpus.records.items()]
    wanted = pa.table(
        {"column": [r[0] for r in rows], "shard": [r[1] for r in rows], "segments": [r[2] for r in rows]}
    )
    db.register("wanted", wanted)
    fields = ", ".join(f'"{f.name}"' for f in column.INDEX)
    db.execute(
        f'CREATE TABLE idx AS SELECT "column", shard, {fields} FROM '
        f"{_parquet(corpus, 'index.parquet', stack)} "
        'SEMI JOIN wanted USING ("column", shard)'
        if corpus.storage.exists("index.parquet")
        else 'CREATE TABLE idx ("column" VARCHAR, shard VARCHAR, key VARCHAR, recording VARCHAR, '
        "start BIGINT, samples BIGINT, "
        'frames BIGINT, member VARCHAR, "offset" BIGINT, size BIGINT, data_offset BIGINT)'
    )
    short = db.execute(
        'SELECT "column", shard FROM wanted LEFT JOIN (SELECT "column", shard, count(*) n FROM idx GROUP BY '
        'ALL) USING ("column", shard) WHERE n IS DISTINCT FROM segments'
    ).fetchall()
    if short:
        with ThreadPoolExecutor(THREADS) as pool:
            db.register("own", pa.concat_tables(pool.map(lambda place: _own_index(corpus, *place), short)))
        db.execute(
            'DELETE FROM idx USING (SELECT DISTINCT "column", shard FROM own) o WHERE idx."column" = '
            'o."column" AND idx.shard = o.shard'
        )
        db.execute(f'INSERT INTO idx SELECT "column", shard, {fields} FROM own')
    if not corpus.storage.exists("plan.parquet"):
        raise ValueError(
            f"{corpus.storage.root} has no plan.parquet, which says what is held out: run `overtone "
            f"labels` again"
        )
    db.execute(
        f"CREATE TABLE plan AS SELECT recording, shard, split, tombstone FROM "
        f"{_parquet(corpus, 'plan.parquet', stack)}"
    )


def _own_index(corpus: Corpus, name: str, shard: str) -> pa.Table:
    """A shard's index as it lies beside its tar; ValueError when it is not whole."""
    table, record = column.read_index(corpus.storage, name, shard), corpus.records[name, shard]
    if table.num_rows != record.segments:
        raise ValueError(
            f"{corpus.storage.root}: {name}/{shard} has an index of {table.num_rows} segments, its record "
            f"says {record.segments}: `overtone verify --repair`, then label again"
        )
    for title, value in (("column", name), ("shard", shard)):
        table = table.append_column(title, pa.array([value] * len(table), pa.string()))
    return table


def _parquet(corpus: Corpus, name: str, stack: contextlib.ExitStack) -> str:
    path = str(stack.enter_context(corpus.storage.fetched(name))).replace("'", "''")
    return f"read_parquet('{path}')"


def _check_keys(db: duckdb.DuckDBPyConnection, corpus: Corpus) -> None:
    """Every label column has the audio's keys, with the same frames, but for recordings its record says it
    rejected."""
    root = corpus.storage.root
    for name in corpus.labels:
        odd = db.execute(
            "SELECT coalesce(a.shard, c.shard) AS shard, coalesce(a.key, c.key), a.recording, a.frames, "
            'c.frames FROM (FROM idx WHERE "column" = ?) a FULL JOIN (FROM idx WHERE "column" = ?) c ON '
            "a.shard = c.shard AND a.key = c.key WHERE a.frames IS DISTINCT FROM c.frames OR a.samples IS "
            "DISTINCT FROM c.samples OR a.start IS DISTINCT FROM c.start ORDER BY ALL",
            [corpus.audio, name],
        ).fetchall()
        for shard, key, recording, audio_frames, frames in odd:
            if frames is None and any(
                r["recording"] == recording for r in corpus.records[name, shard].rejects
            ):
                continue
            what = (
                f"lacks the key {key}"
                if frames is None
                else f"has the key {key}, which {corpus.audio} lacks"
                if audio_frames is None
                else f"has {frames} frames at {key}, {corpus.audio} {audio_frames}"
            )
            raise ValueError(f"{root}: {name}/{shard} {what}: `overtone verify --repair`, then label again")


def _statistics(
    db: duckdb.DuckDBPyConnection, corpus: Corpus, data: Data, stack: contextlib.ExitStack
) -> str | None:
    """Name of a view of one statistics row for each segment with `stated`, the truth of `where`; None without
    filters."""
    asked = {"rms_db": data.min_rms_db, "silence": data.max_silence, "clipping": data.max_clipping}
    names = [name for name, value in asked.items() if value is not None]
    if not names and not data.where:
        return None
    if not corpus.storage.exists("segments.parquet"):
        raise ValueError(
            f"{corpus.storage.root} has no segments.parquet, which data.where and the filters read: "
            f"run `overtone labels` to its end"
        )
    table = _parquet(corpus, "segments.parquet", stack)
    columns = " ".join(corpus.columns)
    try:  # of several recipes' rows of one segment, those of the columns in use
        db.execute(
            f"CREATE TABLE stats AS SELECT shard, key, {''.join(f'{n}, ' for n in names)} "
            f"coalesce({data.where or 'true'}, false) AS stated FROM {table} QUALIFY row_number() OVER "
            "(PARTITION BY shard, key ORDER BY columns = ? DESC) = 1",
            [columns],
        )
    except duckdb.Error as error:
        raise ValueError(
            f"data.where is {data.where!r}: {_first(error)} (the columns are those of "
            f"{corpus.storage.root}/segments.parquet)"
        ) from None
    missing = db.execute(
        'SELECT shard FROM (FROM idx WHERE "column" = ?) ANTI JOIN stats USING (shard, key) '
        "SEMI JOIN (FROM plan WHERE tombstone IS NULL) p USING (recording, shard) LIMIT 1",
        [corpus.audio],
    ).fetchone()
    if missing:
        raise ValueError(
            f"{corpus.storage.root}: segments.parquet has no row for some of {missing[0]}, which the filters "
            "need: run `overtone labels` to its end"
        )
    return "stats"


def _select(corpus: Corpus, data: Data, statistics: str | None) -> str:
    places = "".join(
        f', c{i}.data_offset AS at{i}, c{i}."offset" + c{i}.size - c{i}.data_offset AS bytes{i}'
        for i in range(len(corpus.labels))
    )
    joins = "".join(
        f" LEFT JOIN (FROM idx WHERE \"column\" = '{name}') c{i} ON a.shard = c{i}.shard AND a.key = c{i}.key"
        for i, name in enumerate(corpus.labels)
    )
    lacks = "".join(
        f"WHEN c{i}.key IS NULL THEN 'rejected by {name}' " for i, name in enumerate(corpus.labels)
    )
    tests = [
        (f"a.samples < {data.samples}", "shorter than a crop"),
        (f"a.samples < {data.min_segment_s * RATE_HZ}", "data.min_segment_s"),
    ]
    for name, limit, sign in (
        ("rms_db", data.min_rms_db, "<"),
        ("silence", data.max_silence, ">"),
        ("clipping", data.max_clipping, ">"),
    ):
        if limit is not None:
            tests.append((f"s.{name} {sign} {limit}", f"data.{'min' if sign == '<' else 'max'}_{name}"))
    if data.where:
        tests.append(("NOT s.stated", "data.where"))
    cases = "".join(f"WHEN {test} THEN '{reason}' " for test, reason in tests)
    if statistics:
        joins += f" LEFT JOIN {statistics} s ON a.shard = s.shard AND a.key = s.key"
    return (
        f"SELECT a.shard, a.key, a.recording, a.start, a.samples, a.frames, "
        f'CASE WHEN a.data_offset >= 0 THEN a.data_offset ELSE a."offset" END AS audio_at, '
        f"CASE WHEN a.data_offset >= 0 THEN 0 ELSE a.size END AS packed{places}, coalesce(p.split = "
        f"'valid', false) AS valid, "
        f"CASE WHEN p.recording IS NULL THEN 'not in the plan any more' "
        f"WHEN p.tombstone IS NOT NULL THEN 'tombstone: ' || p.tombstone {lacks}{cases} END AS dropped "
        f"FROM (FROM idx WHERE \"column\" = '{corpus.audio}') a{joins} LEFT JOIN plan p ON "
        f"a.recording = p.recording AND a.shard = p.shard "
        f"ORDER BY a.shard, a.key"
    )


def label_bytes(corpus: Corpus, name: str) -> tuple[str, int] | None:
    """(dtype, values of a frame) of a label column, from its first member's header; None when it has no
    member."""
    for shard in corpus.shards:
        index = column.read_index(corpus.storage, name, shard)
        if index.num_rows:
            with corpus.storage.open(records.file(name, shard, "tar")) as tar:
                tar.seek(index["offset"][0].as_py())
                _, shape, dtype = column.npy_header(tar.read(min(256, index["size"][0].as_py())))
            return dtype.name, int(np.prod(shape[1:]))
    return None


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
