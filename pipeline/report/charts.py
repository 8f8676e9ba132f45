"""Plots as plain plotly figures ({"data", "layout"}), drawn by plotly.js in the page, which adds the colours
of light or dark."""

import math
from typing import Any

import numpy as np

from pipeline.report.corpus import Corpus
from stages.signal.rates import RATE_HZ

# read on light and on dark
COLOURS = ("#3f83c9", "#d97a1d", "#2f9b72", "#c0567f", "#7f6fc7", "#9a8a2d", "#4aa5a8", "#b0604f")
BARS = 50  # of a histogram
POINTS = 4000  # of a scatter plot: more say nothing and weigh the page down
NOTES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


def chart(
    title: str,
    data: list[dict],
    x: str,
    y: str,
    wide: bool = False,
    height: int = 300,
    note: str = "",
    **layout: Any,
) -> dict[str, Any]:
    """One plot; `x` and `y` name what the axes show, with units."""
    axes = {
        "xaxis": {"title": {"text": x}} | layout.pop("xaxis", {}),
        "yaxis": {"title": {"text": y}} | layout.pop("yaxis", {}),
    }
    return {
        "title": title,
        "note": note,
        "wide": wide,
        "height": height,
        "data": data,
        "layout": {**axes, **layout},
    }


def line(name: str, x: list, y: list, number: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": COLOURS[number % len(COLOURS)], "width": 1.6},
    } | more


def histograms(found: dict[str, Any]) -> list[dict[str, Any]]:
    charts = []
    for d in found["distributions"].values():
        counts = np.array(d["counts"])
        there = np.flatnonzero(counts)
        # fine bins in a bar
        first, joined = int(there[0]), max(1, math.ceil((there[-1] + 1 - there[0]) / BARS))
        counts = np.add.reduceat(counts[first : there[-1] + 1], np.arange(0, there[-1] + 1 - first, joined))
        width = d["width"] * joined
        x = d["low"] + d["width"] * first + width * (np.arange(len(counts)) + 0.5)
        note = f"median {d['p50']:,.5g}, 90 % between {d['p5']:,.5g} and {d['p95']:,.5g}"
        bars = {
            "type": "bar",
            "x": x.tolist(),
            "y": counts.tolist(),
            "width": width,
            "marker": {"color": COLOURS[0]},
            "name": "segments",
        }
        charts.append(chart(d["title"], [bars], d["unit"], "segments", height=230, note=note, bargap=0.03))
    return charts


def code_use(counts_KC: np.ndarray) -> dict[str, Any]:
    """How often each code is used against an even share, on a scale of doublings."""
    share = counts_KC / np.maximum(counts_KC.sum(1, keepdims=True), 1) * counts_KC.shape[1]
    doublings = np.clip(np.log2(np.maximum(share, 1e-9)), -5, 5)
    heat = {
        "type": "heatmap",
        "z": np.round(doublings, 2).tolist(),
        "customdata": counts_KC.astype(int).tolist(),
        "zmin": -5,
        "zmax": 5,
        "colorscale": "Viridis",
        "y": [str(level) for level in range(len(counts_KC))],
        "hovertemplate": "level %{y}, code %{x}<br>%{customdata:,} times, 2^%{z} × an even "
        "share<extra></extra>",
        "colorbar": {
            "title": {"text": "against<br>an even share"},
            "tickvals": [-5, -2, 0, 2, 5],
            "ticktext": ["≤ 1/32 or dead", "1/4", "1", "4 ×", "≥ 32 ×"],
        },
    }
    return chart(
        "Code use",
        [heat],
        "code",
        "level",
        wide=True,
        height=90 + 34 * len(counts_KC),
        yaxis={"autorange": "reversed", "type": "category"},
        note="even is one colour; dark stripes are dead codes, bright ones codes that dominate",
    )


def pitch(sums_2F: np.ndarray, frames: int, fmin_hz: float, bins_per_octave: int) -> dict[str, Any]:
    """Mean and spread of the CQT column's values by pitch."""
    mean = sums_2F[0] / max(frames, 1)
    spread = np.sqrt(np.maximum(sums_2F[1] / max(frames, 1) - mean**2, 0))
    hz = fmin_hz * 2 ** (np.arange(len(mean)) / bins_per_octave)
    names = [f"{h:.0f} Hz, {note(h)}" for h in hz]
    x, upper = np.round(hz, 2).tolist(), (mean + spread).tolist()
    data = [
        line(
            "mean + standard deviation",
            x,
            upper,
            1,
            line={"color": COLOURS[1], "width": 1, "dash": "dot"},
            text=names,
        ),
        line("mean", x, mean.tolist(), 0, text=names, hovertemplate="%{text}: %{y:.4g}<extra></extra>"),
    ]
    octaves = [fmin_hz * 2**n for n in range(math.ceil(len(mean) / bins_per_octave) + 1)]
    axis = {"type": "log", "tickvals": octaves, "ticktext": [f"{h:.0f}<br>{note(h)}" for h in octaves]}
    return chart(
        "CQT mean by pitch",
        data,
        "pitch, Hz",
        "the column's value",
        wide=True,
        xaxis=axis,
        note="what a model without any hearing would answer, and how far the truth strays from it",
    )


def note(hz: float) -> str:
    """The nearest note of A4 = 440 Hz."""
    semitone = round(12 * math.log2(hz / 440)) + 57
    return f"{NOTES[semitone % 12]}{semitone // 12}"


def loudness(corpus: Corpus) -> dict[str, Any] | None:
    """Loudness against silence, a dot a segment (a fixed sample of them), coloured by bandwidth."""
    level = "rms_db" if "lufs" in corpus.missing else "lufs"
    rows = corpus.rows(
        f"SELECT round({level}, 2) AS level, round(silence, 4) AS silence, bandwidth_hz, path, key FROM "
        f"(SELECT * FROM segments WHERE {level} IS NOT NULL ORDER BY hash(key) LIMIT {POINTS}) LEFT "
        f"JOIN planned USING (recording)"
    )
    if not rows:
        return None
    marker: dict[str, Any] = {"size": 6, "opacity": 0.75, "color": COLOURS[0]}
    if "bandwidth_hz" not in corpus.missing:
        marker |= {
            "color": [row["bandwidth_hz"] for row in rows],
            "colorscale": "Viridis",
            "cmin": 0,
            "cmax": RATE_HZ / 2,
            "colorbar": {"title": {"text": "bandwidth,<br>Hz"}},
        }
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [r["level"] for r in rows],
        "y": [r["silence"] for r in rows],
        "marker": marker,
        "text": [f"{(r['path'] or '?').rsplit('/', 1)[-1]}<br>{r['key']}" for r in rows],
        "hovertemplate": "%{text}<br>%{x} · %{y}<extra></extra>",
    }
    unit = "RMS, dBFS" if level == "rms_db" else "loudness, LUFS"
    return chart(
        "Loudness against silence",
        [dots],
        unit,
        "silence, share of 10-ms frames",
        wide=True,
        height=380,
        yaxis={"range": [-0.03, 1.03]},
        note=f"{len(rows):,} segments" + (", a sample" if len(rows) == POINTS else ""),
    )


def run(found: dict[str, Any], line_of_time: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The timeline: throughput by stage and by host, and where the time went."""
    if line_of_time is None:
        return []
    unit, factor = unit_of(line_of_time["seconds"][-1])
    x = [round(s / factor, 4) for s in line_of_time["seconds"]]
    cuts = [
        {
            "type": "line",
            "xref": "x",
            "yref": "paper",
            "x0": c["at_s"] / factor,
            "x1": c["at_s"] / factor,
            "y0": 0,
            "y1": 1,
            "line": {"dash": "dot", "width": 1, "color": "#888"},
        }
        for c in line_of_time["pauses"]
    ]
    note = f"{len(cuts)} pauses in which no shard was worked on are cut out (dotted lines)" if cuts else ""
    charts = [
        chart(
            f"Throughput by {what}",
            [line(name, x, [round(v, 2) for v in y], i) for i, (name, y) in enumerate(series.items())],
            f"{unit} of work since the first shard",
            "audio seconds a second",
            wide=True,
            shapes=cuts,
            note=note,
            showlegend=True,
        )
        for what, series in (("stage", line_of_time["stages"]), ("host, decoding", line_of_time["hosts"]))
    ]
    stages = [c["stage"] for c in found["columns"]]
    unit, factor = unit_of(max(c["wall_s"] or 0 for c in found["columns"]))
    spent = [
        {
            "type": "bar",
            "name": name,
            "x": stages,
            "y": [(c[key] or 0) / factor for c in found["columns"]],
            "marker": {"color": COLOURS[i]},
        }
        for i, (name, key) in enumerate((("wall time of workers", "wall_s"), ("CPU time", "busy_s")))
    ]
    charts.append(
        chart("Where the time went", spent, "stage", unit, height=280, barmode="group", showlegend=True)
    )
    return charts


def unit_of(seconds: float) -> tuple[str, float]:
    """(unit, its seconds) in which a time reads well."""
    return ("seconds", 1.0) if seconds < 180 else ("minutes", 60.0) if seconds < 7200 else ("hours", 3600.0)


def stragglers(corpus: Corpus) -> dict[str, Any] | None:
    """Each shard's speed at each stage, the slowest always among them."""
    rows = corpus.rows(
        "SELECT stage, shard, host, round(times_real_time, 2) AS speed, hours FROM shards WHERE "
        f"times_real_time > 0 QUALIFY row_number() OVER (ORDER BY times_real_time) <= {POINTS // 4} OR "
        f"row_number() OVER (ORDER BY hash(shard), stage) <= {POINTS // 2}"
    )
    if not rows:
        return None
    data = []
    for number, stage in enumerate(dict.fromkeys(row["stage"] for row in rows)):
        own = [row for row in rows if row["stage"] == stage]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": stage,
                "x": [round(r["hours"], 4) for r in own],
                "y": [r["speed"] for r in own],
                "text": [f"{r['shard']} on {r['host']}" for r in own],
                "marker": {"size": 6, "color": COLOURS[number]},
                "hovertemplate": "%{text}: %{y} × real time<extra></extra>",
            }
        )
    return chart(
        "Shards",
        data,
        "hours of audio in the shard",
        "× real time",
        height=280,
        yaxis={"type": "log", "dtick": "D2"},
        showlegend=True,
    )
