"""`overtone stats`: look at the data before GPU weeks are spent on it, and at a training run while it goes.

An OUT of `labels` is shown on the terminal and as OUT/report/index.html; two or more are compared; RUNs
of `train` (with a metrics.jsonl) become curves on one page. Nothing is computed anew to show it.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from pipeline.report import anomalies, terminal
from pipeline.report import corpus as corpora
from pipeline.report.corpus import Corpus, quoted
from pipeline.report.numbers import numbers
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

METRICS = "metrics.jsonl"
ROWS = 20  # of segments on a terminal


@dataclass(frozen=True)
class StatsQuery:
    """What the command line asks. Of shard, recording and where, all given must hold."""

    places: tuple[str, ...]
    as_json: bool = False
    shard: str | None = None
    recording: str | None = None  # its path, the end of it, or its id
    where: str | None = None  # DuckDB SQL over the segments' statistics
    page: bool = True


def stats(query: StatsQuery) -> int:
    """Show it; returns the exit code. ValueError for what is neither an OUT nor a RUN, or a mix."""
    runs = [Storage(place).exists(METRICS) for place in query.places]
    if any(runs) and not all(runs):
        raise ValueError(
            f"{query.places[runs.index(True)]} is a training run, {query.places[runs.index(False)]} is none: "
            "give either OUTs of `labels` or RUNs of `train`"
        )
    chosen = query.shard or query.recording or query.where
    if all(runs):
        if chosen:
            raise ValueError(
                "--shard, --recording and --where choose segments of an OUT; a training run has none"
            )
        return _runs(query)
    if len(query.places) > 1:
        if chosen:
            raise ValueError("--shard, --recording and --where look into one OUT: give one")
        return _compare(query)
    with corpora.opened(query.places[0]) as corpus:
        return _some(corpus, query) if chosen else _whole(corpus, query)


def _whole(corpus: Corpus, query: StatsQuery) -> int:
    found = numbers(corpus)
    odd = anomalies.anomalies(corpus, found)
    if query.as_json:
        return _print_json(
            found | {"worth_a_look": anomalies.as_data(odd), "exclude_all": anomalies.everything(odd)}
        )
    console = _console()
    terminal.show(console, found, odd)
    if query.page:
        from pipeline.report import page

        console.print(f"\npage: {page.of_corpus(corpus, found, odd)}", soft_wrap=True)
    return 0


def _some(corpus: Corpus, query: StatsQuery) -> int:
    """One shard, one recording, or the segments of which a condition holds."""
    conditions = []
    if query.shard:
        conditions.append(f"shard = {quoted(query.shard)}")
    if query.recording:
        text = quoted(query.recording)
        conditions.append(f"(recording = {text} OR path = {text} OR suffix(path, '/' || {text}))")
    if query.where:
        conditions.append(f"({query.where})")
    condition = " AND ".join(conditions)
    counted = corpus.query(
        "SELECT count(*) AS segments, count(DISTINCT recording) AS recordings, "
        f"coalesce(sum(samples), 0) / {RATE_HZ}.0 / 3600 AS hours FROM named WHERE {condition}"
    )[0]
    if not counted["segments"] and not query.where:
        raise ValueError(
            f"{query.places[0]} holds no segment of {query.shard or query.recording}: "
            "give a shard's name, or a recording's path or id (a rejected one has no segments)"
        )
    limit = "" if query.as_json else f"LIMIT {ROWS}"
    rows = corpus.query(f"SELECT * FROM named WHERE {condition} ORDER BY path, start {limit}")
    of_shard = corpus.rows(f"SELECT * FROM shards WHERE shard = {quoted(query.shard)}") if query.shard else []
    if query.as_json:
        return _print_json(
            counted | {"condition": condition, "rows": rows} | ({"columns": of_shard} if query.shard else {})
        )
    console = _console()
    for row in of_shard:
        console.print(
            f"{row['column']}: {terminal.size(row['bytes'])}, {row['kept']} kept, {row['rejected']} "
            f"rejected{' ' + row['rejects'] if row['rejected'] and row['rejects'] else ''}, "
            f"{terminal.span(row['wall_s'])} on {row['host']}, {terminal.number(row['times_real_time'], 0)} "
            f"× real time, attempts {terminal.number(row['attempts'], 0)}"
        )
    terminal.segments(console, rows, counted)
    if query.where and not (query.shard or query.recording) and counted["segments"]:
        console.print(
            f"leave them out of training:  {anomalies.setting(query.where)}", soft_wrap=True, markup=False
        )
    return 0


def _compare(query: StatsQuery) -> int:
    found = []
    for place in query.places:
        with corpora.opened(place) as corpus:
            found.append(numbers(corpus))
    if query.as_json:
        return _print_json(found)
    terminal.comparison(_console(), found)
    return 0


def _runs(query: StatsQuery) -> int:
    from pipeline.report import training

    runs = [training.read(place) for place in query.places]
    if query.as_json:
        return _print_json([training.summary(run) for run in runs])
    console = _console()
    training.show(console, runs)
    if query.page:
        from pipeline.report import page

        console.print(f"\npage: {page.of_runs(runs)}", soft_wrap=True)
    return 0


def _console() -> Console:
    # Without a terminal rich assumes 80 columns, which would fold the tables of a log file.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def _print_json(found: Any) -> int:
    print(json.dumps(found, indent=1, default=str))
    return 0
