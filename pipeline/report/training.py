"""Training runs: RUN/metrics.jsonl as curves and as a few numbers. A line is an object; a missing key is a
missing curve."""

from dataclasses import dataclass, field
from typing import Any

import duckdb
from rich.console import Console
from rich.table import Table

from pipeline.report import terminal
from pipeline.report.terminal import number, span
from stages.shards.storage import Storage

METRICS = "metrics.jsonl"
POINTS = 600  # of a curve: means over so many stretches of updates
SCALARS = (
    "loss",
    "cqt_error",
    "cqt_mean_error",
    "cqt_line_error",
    "penalty",
    "grad_norm",
    "rate",
    "scale",
    "audio_s_per_s",
    "utilisation",
    "data_wait",
    "masked_frames",
    "skipped",
    "time",
)
LISTS = ("ce", "accuracy", "gain", "gain_low", "gain_high", "effective_rank")
FIELDS = (
    {
        "kind": "VARCHAR",
        "update": "BIGINT",
        "host": "VARCHAR",
        "world": "BIGINT",
        "updates": "BIGINT",
        "codebooks": "VARCHAR[]",
    }
    | dict.fromkeys(SCALARS, "DOUBLE")
    | dict.fromkeys(LISTS, "DOUBLE[]")
)


@dataclass
class Run:
    """curve: name → values by stretch of updates; lists are one curve a level, `accuracy/0`, `accuracy/1`
    …"""

    place: str
    starts: list[dict[str, Any]]
    valid: list[dict[str, Any]]
    curve: dict[str, list[Any]]
    last: dict[str, Any]
    ended: bool
    codebooks: list[str] = field(default_factory=list)

    @property
    def restarts(self) -> list[int]:
        """Updates at which the run went on after a stop or a death."""
        return [start["update"] or 0 for start in self.starts[1:]]

    @property
    def levels(self) -> int:
        return max((len(row["accuracy"] or row["ce"] or ()) for row in (self.last, *self.valid)), default=0)


def read(place: str) -> Run:
    """Raises ValueError for a file that holds no updates, or none of the lines we know. A half-written last
    line is passed over."""
    out = Storage(place)
    with out.fetched(METRICS) as path, duckdb.connect(":memory:") as db:
        fields = ", ".join(f"{name}: '{kind}'" for name, kind in FIELDS.items())
        db.execute(
            "CREATE TABLE lines AS SELECT * FROM read_json(?, format='newline_delimited', "
            f"ignore_errors=true, columns={{{fields}}})",
            [str(path)],
        )
        # What was done again after a restart counts as it was done last.
        db.execute(
            "CREATE VIEW updates AS SELECT * FROM lines WHERE kind = 'update' AND update IS NOT NULL "
            "QUALIFY row_number() OVER (PARTITION BY update ORDER BY time DESC NULLS LAST) = 1"
        )
        starts = _rows(
            db,
            "SELECT update, time, host, world, updates, codebooks FROM lines WHERE kind = 'start' "
            "ORDER BY time",
        )
        valid = _rows(
            db,
            "SELECT * FROM lines WHERE kind = 'valid' AND update IS NOT NULL QUALIFY row_number() OVER "
            "(PARTITION BY update ORDER BY time DESC NULLS LAST) = 1 ORDER BY update",
        )
        last = _rows(db, "SELECT * FROM updates ORDER BY update DESC LIMIT 1")
        if not last:
            raise ValueError(f"{out.path(METRICS)} holds no update yet: look again when the run has made one")
        ended = bool(_rows(db, "SELECT 1 FROM lines WHERE kind = 'end'"))
        levels = {
            name: _rows(db, f"SELECT coalesce(max(len({name})), 0) AS n FROM updates")[0]["n"]
            for name in ("ce", "accuracy", "gain")
        }
        curve = _curves(db, levels)
    return Run(
        place, starts, valid, curve, last[0], ended, (starts[-1]["codebooks"] if starts else None) or []
    )


def _rows(db: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    cursor = db.execute(query)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _curves(db: duckdb.DuckDBPyConnection, levels: dict[str, int]) -> dict[str, list[Any]]:
    means = [f'avg({name}) AS "{name}"' for name in SCALARS]
    means += [f'avg({name}[{k + 1}]) AS "{name}/{k}"' for name, many in levels.items() for k in range(many)]
    rows = _rows(
        db,
        f"WITH span AS (SELECT greatest(1, ceil((max(update) - min(update) + 1) / {POINTS}))::BIGINT AS "
        "step FROM updates) SELECT max(update) AS update, max(grad_norm) AS grad_norm_max, sum(skipped) AS "
        f"skipped_sum, {', '.join(means)} FROM updates, span GROUP BY update // step ORDER BY 1",
    )
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def summary(run: Run) -> dict[str, Any]:
    """The numbers of one run, as plain data."""
    times = [t for t in run.curve["time"] if t is not None]
    held_out = run.valid[-1] if run.valid else {}
    speeds = sorted(v for v in run.curve["audio_s_per_s"] if v is not None)
    return {
        "run": run.place,
        "updates": run.last["update"],
        "of": run.starts[-1]["updates"] if run.starts else None,
        "ended": run.ended,
        "restarts": run.restarts,
        "codebooks": run.codebooks,
        **{k: run.last[k] for k in ("loss", "accuracy", "gain", "cqt_error")},
        "held_out": {k: held_out.get(k) for k in ("update", "loss", "accuracy", "gain", "cqt_error")},
        "audio_s_per_s": speeds[len(speeds) // 2] if speeds else None,
        "utilisation": _mean(run.curve["utilisation"]),
        "data_wait": _mean(run.curve["data_wait"]),
        "skipped": sum(v or 0 for v in run.curve["skipped_sum"]),
        "elapsed_s": times[-1] - (run.starts[0]["time"] or times[0]) if times and run.starts else None,
    }


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def table(runs: list[Run]) -> Table:
    """A row a run: where it stands, how well, how fast."""
    made = terminal.columns_table(
        "run",
        ">update",
        ">loss",
        ">held out",
        ">accuracy 0",
        ">gain 0",
        ">CQT error",
        ">audio-s/s",
        ">utilisation",
        ">data wait",
        ">skipped",
        ">restarts",
        ">time",
    )
    for run in runs:
        s = summary(run)
        accuracy, gain = (
            s["held_out"]["accuracy"] or s["accuracy"] or [None],
            s["held_out"]["gain"] or s["gain"] or [None],
        )
        made.add_row(
            run.place,
            f"{s['updates']:,}" + (f" / {s['of']:,}" if s["of"] else ""),
            number(s["loss"]),
            number(s["held_out"]["loss"]),
            number(accuracy[0], 3),
            number(gain[0], 3),
            number(s["cqt_error"], 3),
            number(s["audio_s_per_s"], 1),
            number(s["utilisation"], 3),
            number(s["data_wait"], 3),
            number(s["skipped"], 0),
            str(len(s["restarts"])),
            span(s["elapsed_s"]),
        )
    return made


def tiles(runs: list[Run]) -> list[tuple[str, str]]:
    s = summary(runs[0])
    return [
        ("runs", str(len(runs))),
        ("updates", f"{s['updates']:,}"),
        ("loss", number(s["loss"])),
        ("held-out loss", number(s["held_out"]["loss"])),
        ("audio-s/s", number(s["audio_s_per_s"], 1)),
        ("utilisation", number(s["utilisation"], 3)),
        ("restarts", str(len(s["restarts"]))),
    ]


def show(console: Console, runs: list[Run]) -> None:
    console.print(table(runs))
    for run in runs:
        losses = [v for v in run.curve["loss"] if v is not None]
        if losses:
            console.print(
                f"{run.place}: loss {terminal.spark(losses)} {number(losses[0])} → {number(losses[-1])}",
                highlight=False,
            )
        if run.restarts:
            console.print(
                f"{run.place}: restarted at update {', '.join(map(str, run.restarts))}", highlight=False
            )
