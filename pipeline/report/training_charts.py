"""Curves of training runs. A run is a colour, or, where levels are shown of one run only, a level is."""

from typing import Any

from pipeline.report.charts import COLOURS, chart, line
from pipeline.report.training import Run

CQT = (
    ("cqt_error", "solid", "model"),
    ("cqt_mean_error", "dot", "each bin's mean"),
    ("cqt_line_error", "dash", "a line across the mask"),
)


def charts(runs: list[Run]) -> dict[str, list[dict[str, Any]]]:
    """Section → plots."""
    return {
        "Loss": [loss(runs)],
        "Codes: accuracy": levels(runs, "accuracy", "Accuracy", "share of masked frames"),
        "Codes: gain over code frequencies": levels(runs, "gain", "Gain", "nats"),
        "CQT": [cqt(runs)],
        "Optimisation": [
            plot(
                runs,
                "Gradient norm",
                "grad_norm",
                "norm before clipping",
                greatest="grad_norm_max",
                yaxis={"type": "log", "dtick": 1},
            ),
            plot(runs, "Learning rate", "rate", "rate"),
            plot(runs, "Feature penalty", "penalty", "mean square"),
            plot(runs, "Loss scale", "scale", "factor", yaxis={"type": "log", "dtick": 1}),
            plot(runs, "Skipped updates", "skipped_sum", "updates"),
        ],
        "Speed": [
            plot(runs, "Throughput", "audio_s_per_s", "audio seconds a second"),
            plot(runs, "Utilisation", "utilisation", "share of the measured peak"),
            plot(runs, "Data wait", "data_wait", "share of the time"),
        ],
        "Representation": [ranks(runs)],
    }


def loss(runs: list[Run]) -> dict[str, Any]:
    data = []
    for at, run in enumerate(runs):
        data += _curve(run, "loss", run.place, at) + _held_out(
            run, at, run.place, lambda row: row["loss"], mode="lines+markers"
        )
    return chart(
        "Loss",
        data,
        "update",
        "nats and squared errors, weighted",
        wide=True,
        height=320,
        note=restarts_said(runs),
        showlegend=True,
        shapes=restarts(runs),
    )


def plot(
    runs: list[Run], title: str, name: str, unit: str, greatest: str = "", **layout: Any
) -> dict[str, Any]:
    """One number of each run, from zero up."""
    data = []
    for at, run in enumerate(runs):
        data += _curve(run, name, run.place, at)
        # points that are means hide the spikes
        if greatest and len(run.curve["update"]) < run.curve["update"][-1]:
            data += _curve(run, greatest, f"{run.place}, greatest", at, dash="dot")
    layout.setdefault("yaxis", {"rangemode": "tozero"})
    return chart(
        title,
        data,
        "update",
        unit,
        height=260,
        note=restarts_said(runs),
        showlegend=len(data) > 1,
        shapes=restarts(runs),
        **layout,
    )


def levels(runs: list[Run], name: str, title: str, unit: str) -> list[dict[str, Any]]:
    """One run: a plot with a line a level. Several: a plot a level with a line a run. Dashed: held out."""
    many = max((run.levels for run in runs), default=0)
    plots = []
    for k in range(many):
        data = []
        for at, run in enumerate(runs):
            colour, label = (k, f"level {k}") if len(runs) == 1 else (at, run.place)
            data += _curve(run, f"{name}/{k}", label, colour)
            data += _held_out(
                run,
                colour,
                label,
                lambda row, k=k: row[name][k] if row[name] and k < len(row[name]) else None,
            )
        plots.append(data)
    if len(runs) == 1:
        together = [curve for data in plots for curve in data]
        return [
            chart(
                f"{title} by level",
                together,
                "update",
                unit,
                wide=True,
                note="dashed: held out",
                showlegend=True,
                shapes=restarts(runs),
            )
        ]
    return [
        chart(
            f"{title}, level {k}",
            data,
            "update",
            unit,
            height=240,
            note="dashed: held out",
            shapes=restarts(runs),
        )
        for k, data in enumerate(plots)
    ]


def cqt(runs: list[Run]) -> dict[str, Any]:
    data = []
    for at, run in enumerate(runs):
        for name, dash, words in CQT:
            data += _curve(run, name, f"{run.place}: {words}", at, dash=dash)
    return chart(
        "CQT error against predictors without hearing",
        data,
        "update",
        "mean squared error",
        wide=True,
        note=restarts_said(runs),
        showlegend=True,
        shapes=restarts(runs),
    )


def ranks(runs: list[Run]) -> dict[str, Any]:
    data = []
    for at, run in enumerate(runs):
        rows = [row["effective_rank"] for row in run.valid if row["effective_rank"]]
        if rows:
            data.append(line(run.place, list(range(len(rows[-1]))), rows[-1], at, mode="lines+markers"))
    return chart(
        "Effective rank at the last validation",
        data,
        "layer",
        "dimensions in use",
        note="near 1 is collapse",
        showlegend=len(data) > 1,
        yaxis={"rangemode": "tozero"},
    )


def restarts(runs: list[Run]) -> list[dict[str, Any]]:
    """A dotted vertical at each restart, in its run's colour; of one run alone, in another than its
    curve's."""
    marks = []
    for at, run in enumerate(runs):
        stroke = {"dash": "dot", "width": 1.2, "color": COLOURS[(at + (len(runs) == 1)) % len(COLOURS)]}
        marks += [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": update,
                "x1": update,
                "y0": 0,
                "y1": 1,
                "name": "restart",
                "line": stroke,
            }
            for update in run.restarts
        ]
    return marks


def restarts_said(runs: list[Run]) -> str:
    many = sum(len(run.restarts) for run in runs)
    return f"dotted verticals: {many} restart{'s' if many > 1 else ''}" if many else ""


def _curve(run: Run, name: str, label: str, colour: int, dash: str = "solid") -> list[dict[str, Any]]:
    """A line, or none where the run lacks the number."""
    values = run.curve.get(name, [])
    if not any(value is not None for value in values):
        return []
    return [line(label, run.curve["update"], values, colour, line=_stroke(colour, dash))]


def _held_out(run: Run, colour: int, label: str, value: Any, **more: Any) -> list[dict[str, Any]]:
    rows = [(row["update"], value(row)) for row in run.valid if value(row) is not None]
    if not rows:
        return []
    return [
        line(
            f"{label}, held out",
            [x for x, _ in rows],
            [y for _, y in rows],
            colour,
            line=_stroke(colour, "dash"),
            **more,
        )
    ]


def _stroke(colour: int, dash: str) -> dict[str, Any]:
    return {"color": COLOURS[colour % len(COLOURS)], "dash": dash, "width": 1.6 if dash == "solid" else 1.2}
