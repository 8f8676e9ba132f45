"""Training runs: RUN/metrics.jsonl as curves and numbers; a missing key is a missing curve."""

from typing import Any, NamedTuple

import duckdb
from rich.console import Console

from pipeline.report.corpus import Row, as_dicts
from pipeline.report.table import Table, chosen, number, spark
from pipeline.report.terminal import drawn
from stages.pretrain.run.rows import OLD_NAMES, with_old_names
from stages.shards.storage import Storage

METRICS = "metrics.jsonl"
POINTS = 600  # of a curve: means over stretches of updates
CQT_ERRORS = ("cqt_error", "cqt_mean_error", "cqt_line_error")
SPEEDS = ("audio_s_per_s", "utilisation", "data_wait")
SCALARS = ("loss", "penalty", "grad_norm", "lr", "scale", "masked_frames", "skipped", "time")
BY_LEVEL = ("ce", "accuracy", "gain_over_unigram")
LISTS = (*BY_LEVEL, "gain_over_unigram_low", "gain_over_unigram_high", "effective_rank")
FIELDS = (
    {"kind": "VARCHAR", "host": "VARCHAR", "codebooks": "VARCHAR[]"}
    | dict.fromkeys(("update", "world", "updates"), "BIGINT")
    | dict.fromkeys((*SCALARS, *CQT_ERRORS, *SPEEDS), "DOUBLE")
    | dict.fromkeys(LISTS, "DOUBLE[]")
)


class RunCurves(NamedTuple):
    """curve: name → values; lists are a curve a level, `accuracy/0`, `accuracy/1` …"""

    place: str
    starts: list[Row]
    valid: list[Row]
    curve: dict[str, list[Any]]
    last: Row
    ended: bool
    codebooks: list[str]

    def known(self, name: str) -> list[Any]:
        return [value for value in self.curve[name] if value is not None]

    @property
    def restarts(self) -> list[int]:
        return [start["update"] or 0 for start in self.starts[1:]]

    @property
    def levels(self) -> int:
        return max((len(row["accuracy"] or row["ce"] or ()) for row in (self.last, *self.valid)), default=0)


def read(place: str) -> RunCurves:
    """Raises ValueError for a file without updates. Half a last line is ignored."""
    out = Storage(place)
    types = FIELDS | {old: FIELDS[new] for old, new in OLD_NAMES.items()}
    fields = ", ".join(f"{name}: '{kind}'" for name, kind in types.items())
    new = ", ".join(f"coalesce({new}, {old}) AS {new}" for old, new in OLD_NAMES.items())
    with out.fetched(METRICS) as path, duckdb.connect(":memory:") as db:

        def rows(query: str) -> list[Row]:
            return as_dicts(db.execute(query))

        db.execute(
            f"CREATE TABLE lines AS SELECT * EXCLUDE ({', '.join(OLD_NAMES)}) REPLACE ({new}) FROM "
            f"read_json(?, format='newline_delimited', ignore_errors=true, columns={{{fields}}})",
            [str(path)],
        )
        # Of an update that was done again after a restart, the last row counts.
        for kind in ("update", "valid"):
            db.execute(
                f"CREATE VIEW of_{kind} AS SELECT * FROM lines WHERE kind = '{kind}' AND update IS NOT NULL "
                "QUALIFY row_number() OVER (PARTITION BY update ORDER BY time DESC NULLS LAST) = 1"
            )
        starts = rows("SELECT * FROM lines WHERE kind = 'start' ORDER BY time")
        last = rows("SELECT * FROM of_update ORDER BY update DESC LIMIT 1")
        if not last:
            raise ValueError(f"{out.path(METRICS)} holds no update yet: look again when the run has made one")
        ended = bool(rows("SELECT 1 FROM lines WHERE kind = 'end'"))
        means = [f'avg({name}) AS "{name}"' for name, kind in FIELDS.items() if kind == "DOUBLE"]
        sizes = ", ".join(f"max(len({name})) AS {name}" for name in BY_LEVEL)
        (levels,) = rows(f"SELECT {sizes} FROM of_update")
        means += [
            f'avg({name}[{k + 1}]) AS "{name}/{k}"' for name, many in levels.items() for k in range(many or 0)
        ]
        points = rows(
            f"""WITH span AS (SELECT greatest(1, ceil((max(update) - min(update) + 1) / {POINTS}))::BIGINT
            AS step FROM of_update) SELECT max(update) AS update, max(grad_norm) AS grad_norm_max,
            sum(skipped) AS skipped_sum, {", ".join(means)} FROM of_update, span
            GROUP BY update // step ORDER BY 1"""
        )
        valid = rows("FROM of_valid ORDER BY update")
    curve = {name: [point[name] for point in points] for name in points[0]}
    codebooks = (starts[-1]["codebooks"] if starts else None) or []
    return RunCurves(place, starts, valid, curve, last[0], ended, codebooks)


def summary(run: RunCurves) -> Row:
    times, speeds = run.known("time"), sorted(run.known("audio_s_per_s"))
    held_out = run.valid[-1] if run.valid else {}
    figures = ("loss", "accuracy", "gain_over_unigram", "cqt_error")
    shares = {name: run.known(name) for name in ("utilisation", "data_wait")}
    return {
        "run": run.place,
        "updates": run.last["update"],
        "of": run.starts[-1]["updates"] if run.starts else None,
        "ended": run.ended,
        "restarts": run.restarts,
        "codebooks": run.codebooks,
        **with_old_names({k: run.last[k] for k in figures}),
        "held_out": with_old_names({k: held_out.get(k) for k in ("update", *figures)}),
        "audio_s_per_s": speeds[len(speeds) // 2] if speeds else None,
        **{name: sum(values) / len(values) if values else None for name, values in shares.items()},
        "skipped": sum(run.known("skipped_sum")),
        "elapsed_s": times[-1] - (run.starts[0]["time"] or times[0]) if times and run.starts else None,
    }


def table(runs: list[RunCurves]) -> Table:
    keys = "run progress loss held_out_loss accuracy_0 gain_0 cqt_error audio_s_per_s utilisation data_wait "
    rows = []
    for s in map(summary, runs):
        held_out, progress = s["held_out"], (s["updates"], s["of"]) if s["of"] else s["updates"]
        accuracy, gain = ((held_out[k] or s[k] or [None])[0] for k in ("accuracy", "gain_over_unigram"))
        more = {"progress": progress, "held_out_loss": held_out["loss"], "restarted": len(s["restarts"])}
        rows.append(s | more | {"accuracy_0": accuracy, "gain_0": gain})
    return Table("", chosen(keys + "skipped restarted elapsed_s"), rows)


def tiles(runs: list[RunCurves]) -> dict[str, str]:
    (row,), found = table(runs[:1]).rows, {"runs": str(len(runs))}
    for key, column in chosen("progress loss held_out_loss audio_s_per_s utilisation restarted").items():
        found[column.head] = column.text(row[key])
    return found


def show(console: Console, runs: list[RunCurves]) -> None:
    console.print(drawn(table(runs)))
    for run in runs:
        lines = []
        if losses := run.known("loss"):
            lines.append(f"loss {spark(losses)} {number(losses[0])} → {number(losses[-1])}")
        if run.restarts:
            lines.append(f"restarted at update {', '.join(map(str, run.restarts))}")
        for line in lines:
            console.print(f"{run.place}: {line}", highlight=False, markup=False)
