"""Curves of training runs: a colour a run, or a level of a single run."""

from typing import Any

from pipeline.report.charts import Plot, chart, colour, line, vertical
from pipeline.report.training import CQT_ERRORS, RunCurves

FROM_ZERO = {"rangemode": "tozero"}


def charts(runs: list[RunCurves]) -> dict[str, list[Plot]]:
    def plot(title: str, name: str, unit: str, most: str = "", **layout: Any) -> Plot:
        """From zero up; `most`: the greatest value in each stretch, dotted."""
        data = []
        for at, run in enumerate(runs):
            data += _curve(run, name, run.place, at)
            # points that are means hide the spikes
            if most and len(run.curve["update"]) < run.curve["update"][-1]:
                data += _curve(run, most, f"{run.place}, greatest", at, "dot")
        layout = dict(yaxis=FROM_ZERO, showlegend=len(data) > 1) | layout
        return over_updates(runs, title, data, unit, height=260, **layout)

    gain, logarithmic = "gain_over_unigram", {"type": "log", "dtick": 1}
    return {
        "Loss": [loss(runs)],
        "Codes: accuracy": levels(runs, "accuracy", "Accuracy", "share of masked frames"),
        f"Codes: {gain}": levels(runs, gain, gain, f"{gain}, nats"),
        "CQT": [cqt(runs)],
        "Optimisation": [
            plot("Gradient norm", "grad_norm", "norm before clipping", "grad_norm_max", yaxis=logarithmic),
            plot("Learning rate", "lr", "lr"),
            plot("Feature penalty", "penalty", "mean square"),
            plot("Loss scale", "scale", "factor", yaxis=logarithmic),
            plot("Skipped updates", "skipped_sum", "updates"),
        ],
        "Speed": [
            plot("Throughput", "audio_s_per_s", "audio seconds a second"),
            plot("Utilisation", "utilisation", "share of the measured peak"),
            plot("Data wait", "data_wait", "share of the time"),
        ],
        "Representation": [ranks(runs)],
    }


def over_updates(runs: list[RunCurves], title: str, data: list[Plot], unit: str, **more: Any) -> Plot:
    """Dotted at each restart, in the run's colour; of one run, in another than its curve's."""
    restarts = [
        vertical(update, 1.2, colour(at + (len(runs) == 1)), name="restart")
        for at, run in enumerate(runs)
        for update in run.restarts
    ]
    note = f"dotted verticals: {len(restarts)} restart{'s' * (len(restarts) > 1)}" if restarts else ""
    return chart(title, data, "update", unit, **dict(note=note, showlegend=True, shapes=restarts) | more)


def loss(runs: list[RunCurves]) -> Plot:
    data = []
    for at, run in enumerate(runs):
        data += _curve(run, "loss", run.place, at)
        data += _held_out(run, "loss", run.place, at, mode="lines+markers")
    return over_updates(runs, "Loss", data, "nats and squared errors, weighted", wide=True, height=320)


def levels(runs: list[RunCurves], name: str, title: str, unit: str) -> list[Plot]:
    """One run: a plot with a line a level. Several: a plot a level with a line a run."""
    plots = [[] for _ in range(max(run.levels for run in runs))]
    for k, data in enumerate(plots):
        for at, run in enumerate(runs):
            what = (f"{name}/{k}", f"level {k}", k) if len(runs) == 1 else (f"{name}/{k}", run.place, at)
            data += _curve(run, *what) + _held_out(run, *what)
    more = dict(note="dashed: held out")
    if len(runs) == 1:
        return [over_updates(runs, f"{title} by level", sum(plots, []), unit, wide=True, **more)]
    more |= dict(height=240, showlegend=False)
    return [over_updates(runs, f"{title}, level {k}", data, unit, **more) for k, data in enumerate(plots)]


def cqt(runs: list[RunCurves]) -> Plot:
    words = ("model", "each bin's mean", "a line across the mask")
    data = [
        curve
        for name, what, dash in zip(CQT_ERRORS, words, ("solid", "dot", "dash"), strict=True)
        for at, run in enumerate(runs)
        for curve in _curve(run, name, f"{run.place}: {what}", at, dash)
    ]
    title = "CQT error against predictors that read no audio"
    return over_updates(runs, title, data, "mean squared error", wide=True)


def ranks(runs: list[RunCurves]) -> Plot:
    data = []
    for at, run in enumerate(runs):
        rows = [row["effective_rank"] for row in run.valid if row["effective_rank"]]
        if rows:
            data.append(line(run.place, list(range(len(rows[-1]))), rows[-1], at, mode="lines+markers"))
    layout = dict(note="near 1 is collapse", showlegend=len(data) > 1, yaxis=FROM_ZERO)
    return chart("Effective rank at the last validation", data, "layer", "dimensions in use", **layout)


def _curve(run: RunCurves, name: str, label: str, number: int, dash: str = "solid") -> list[Plot]:
    """A line, or none where the run lacks the figure."""
    x, y = run.curve["update"], run.curve.get(name, [])
    return [line(label, x, y, number, dash)] if any(value is not None for value in y) else []


def _held_out(run: RunCurves, name: str, label: str, number: int, **more: Any) -> list[Plot]:
    key, _, level = name.partition("/")
    x, y = [], []
    for row in run.valid:
        values = (row[key] or [])[int(level) :] if level else [row[key]]
        if values and values[0] is not None:
            x.append(row["update"])
            y.append(values[0])
    return [line(f"{label}, held out", x, y, number, "dash", **more)] if x else []
