"""`overtone stats`: look at the data before GPU weeks are spent on it, and at a training run while it goes.

An OUT of `labels` is shown on the terminal and as OUT/report/index.html; two or more are compared; RUNs
of `train` (with a metrics.jsonl) become curves on one page. Nothing is computed anew to show it.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from pipeline.report import anomalies, label_tables, terminal, training
from pipeline.report import corpus as corpora
from pipeline.report.corpus import AMOUNT, Corpus, quoted
from pipeline.report.numbers import numbers
from pipeline.report.table import number, size, span
from stages.shards.storage import Storage

ROWS = 20  # of segments on a terminal


@dataclass(frozen=True)
class StatsQuery:
    """The options of the command. Of shard, recording and where, all given must hold."""

    places: tuple[str, ...]
    as_json: bool = False
    shard: str | None = None
    recording: str | None = None  # its path, the end of it, or its id
    where: str | None = None  # DuckDB SQL over the segments' statistics
    page: bool = True


def stats(query: StatsQuery) -> int:
    """Show it; returns the exit code. ValueError for what is neither an OUT nor a RUN, or a mix."""
    places = query.places
    runs = [Storage(place).exists(training.METRICS) for place in places]
    if any(runs) and not all(runs):
        raise ValueError(
            f"{places[runs.index(True)]} is a training run, {places[runs.index(False)]} is none: "
            "give either OUTs of `labels` or RUNs of `train`"
        )
    chosen = query.shard or query.recording or query.where
    if all(runs):
        if chosen:
            raise ValueError(
                "--shard, --recording and --where choose segments of an OUT; a training run has none"
            )
        return _runs(query)
    if len(places) > 1:
        if chosen:
            raise ValueError("--shard, --recording and --where look into one OUT: give one")
        return _compare(query)
    with corpora.opened(places[0]) as corpus:
        return _some(corpus, query) if chosen else _whole(corpus, query)


def _whole(corpus: Corpus, query: StatsQuery) -> int:
    found = numbers(corpus)
    unusual = anomalies.anomalies(corpus, found)
    if query.as_json:
        notable = {"worth_a_look": anomalies.as_data(unusual), "exclude_all": anomalies.everything(unusual)}
        return _print_json(found | notable)
    console = _console()
    terminal.show(console, found, unusual)
    if query.page:
        from pipeline.report import page

        _print_page(console, page.of_corpus(corpus, found, unusual))
    return 0


def _some(corpus: Corpus, query: StatsQuery) -> int:
    """One shard, one recording, or the segments of which a condition holds."""
    conditions = [f"shard = {quoted(query.shard)}"] if query.shard else []
    if query.recording:
        text = quoted(query.recording)
        conditions.append(f"(recording = {text} OR path = {text} OR suffix(path, '/' || {text}))")
    if query.where:
        conditions.append(f"({query.where})")
    condition = " AND ".join(conditions)
    (counted,) = corpus.query(f"SELECT {AMOUNT} FROM named WHERE {condition}")
    if not counted["segments"] and not query.where:
        raise ValueError(
            f"{query.places[0]} holds no segment of {query.shard or query.recording}: "
            "give a shard's name, or a recording's path or id (a rejected one has no segments)"
        )
    limit = "" if query.as_json else f"LIMIT {ROWS}"
    rows = corpus.query(f"SELECT * FROM named WHERE {condition} ORDER BY path, start {limit}")
    columns = corpus.rows("SELECT * FROM shards WHERE shard = ?", query.shard) if query.shard else []
    if query.as_json:
        more = {"columns": columns} if query.shard else {}
        return _print_json(counted | {"condition": condition, "rows": rows} | more)
    console = _console()
    for row in columns:
        rejects = f" {row['rejects']}" if row["rejected"] and row["rejects"] else ""
        console.print(
            f"{row['column']}: {size(row['bytes'])}, {row['kept']} kept, {row['rejected']} rejected{rejects}"
            f", {span(row['wall_s'])} on {row['host']}, {number(row['times_real_time'], 0)} × real time, "
            f"attempts {number(row['attempts'], 0)}",
            markup=False,
        )
    terminal.segments(console, rows, counted)
    if query.where and len(conditions) == 1 and rows:
        option = anomalies.setting(query.where)
        console.print(f"leave them out of training:  {option}", soft_wrap=True, markup=False)
    return 0


def _compare(query: StatsQuery) -> int:
    found = []
    for place in query.places:
        with corpora.opened(place) as corpus:
            found.append(numbers(corpus))
    if query.as_json:
        return _print_json(found)
    _console().print(terminal.drawn(label_tables.comparison(found)))
    return 0


def _runs(query: StatsQuery) -> int:
    runs = [training.read(place) for place in query.places]
    if query.as_json:
        return _print_json([training.summary(run) for run in runs])
    console = _console()
    training.show(console, runs)
    if query.page:
        from pipeline.report import page

        _print_page(console, page.of_runs(runs))
    return 0


def _console() -> Console:
    # Without a terminal rich assumes 80 columns, which would fold the tables of a log file.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def _print_page(console: Console, path: str) -> None:
    console.print(f"\npage: {path}", soft_wrap=True, markup=False)


def _print_json(found: Any) -> int:
    print(json.dumps(found, indent=1, default=str))
    return 0
