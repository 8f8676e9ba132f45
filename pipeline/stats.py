"""`overtone stats`: look at the data before GPU weeks are spent on it, and at a training run while it goes.
Nothing is computed anew."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from pipeline.report import anomalies, label_tables, terminal, training
from pipeline.report import corpus as corpora
from pipeline.report.corpus import AMOUNT, Corpus
from pipeline.report.numbers import numbers
from pipeline.report.table import number, size, span
from stages.shards import tables
from stages.shards.storage import Storage

ROWS = 20  # of segments on a terminal


def stats(places: Sequence[str], as_json: bool, page: bool, **chosen: str | None) -> int:
    """chosen: shard, recording (its path, the end of it, or its id) and where (DuckDB SQL over the segments'
    statistics); all that are given must hold. ValueError for what is neither an OUT nor a RUN, or a mix."""
    runs = [Storage(place).exists(training.METRICS) for place in places]
    if any(runs) and not all(runs):
        raise ValueError(
            f"{places[runs.index(True)]} is a training run, {places[runs.index(False)]} is none: "
            "give either OUTs of `labels` or RUNs of `train`"
        )
    if any(chosen.values()) and all(runs):
        raise ValueError(
            "--shard, --recording and --where choose segments of an OUT; a training run has none"
        )
    if any(chosen.values()) and len(places) > 1:
        raise ValueError("--shard, --recording and --where look into one OUT: give one")
    # Without a terminal rich assumes 80 columns, which would fold the tables of a log file.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if all(runs):
        curves = [training.read(place) for place in places]
        if as_json:
            return _print_json([training.summary(run) for run in curves])
        training.show(console, curves)
        if page:
            from pipeline.report.page import of_runs

            _print_page(console, of_runs(curves))
        return 0
    if len(places) > 1:
        found = []
        for place in places:
            with corpora.opened(place) as corpus:
                found.append(numbers(corpus))
        if as_json:
            return _print_json(found)
        console.print(terminal.drawn(label_tables.comparison(found)))
        return 0
    with corpora.opened(places[0]) as corpus:
        if any(chosen.values()):
            return _some(console, corpus, as_json, **chosen)
        found = numbers(corpus)
        unusual = anomalies.anomalies(corpus, found)
        if as_json:
            found["worth_a_look"] = anomalies.as_data(unusual)
            return _print_json(found | {"exclude_all": anomalies.everything(unusual)})
        terminal.show(console, found, unusual)
        if page:
            from pipeline.report.page import of_corpus

            _print_page(console, of_corpus(corpus, found, unusual))
        return 0


def _some(console: Console, corpus: Corpus, as_json: bool, shard: str, recording: str, where: str) -> int:
    conditions = [f"shard = {tables.quoted(shard)}"] if shard else []
    if recording:
        text = tables.quoted(recording)
        conditions.append(f"(recording = {text} OR path = {text} OR suffix(path, '/' || {text}))")
    if where:
        conditions.append(f"({where})")
    condition = " AND ".join(conditions)
    (counted,) = corpus.query(f"SELECT {AMOUNT} FROM named WHERE {condition}")
    if not counted["segments"] and not where:
        raise ValueError(
            f"{corpus.place} holds no segment of {shard or recording}: "
            "give a shard's name, or a recording's path or id (a rejected one has no segments)"
        )
    limit = "" if as_json else f"LIMIT {ROWS}"
    rows = corpus.query(f"SELECT * FROM named WHERE {condition} ORDER BY path, start {limit}")
    columns = corpus.rows("SELECT * FROM shards WHERE shard = ?", shard) if shard else []
    if as_json:
        more = {"columns": columns} if shard else {}
        return _print_json(counted | {"condition": condition, "rows": rows} | more)
    for row in columns:
        rejects = f" {row['rejects']}" if row["rejected"] and row["rejects"] else ""
        console.print(
            f"{row['column']}: {size(row['bytes'])}, {row['kept']} kept, {row['rejected']} rejected{rejects}"
            f", {span(row['wall_s'])} on {row['host']}, {number(row['times_real_time'], 0)} × real time, "
            f"attempts {number(row['attempts'], 0)}",
            markup=False,
        )
    terminal.segments(console, rows, counted)
    if where and len(conditions) == 1 and rows:
        option = anomalies.setting(where)
        console.print(f"leave them out of training:  {option}", soft_wrap=True, markup=False)
    return 0


def _print_page(console: Console, path: str) -> None:
    console.print(f"\npage: {path}", soft_wrap=True, markup=False)


def _print_json(found: Any) -> int:
    print(json.dumps(found, indent=1, default=str))
    return 0
