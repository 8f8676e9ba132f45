"""Plots as plotly figures; the page adds the colours of light or dark."""

import math
from typing import Any

import numpy as np

from pipeline.report.corpus import Corpus, Row
from stages.signal.rates import RATE_HZ

Plot = dict[str, Any]

# legible on light and on dark
COLOURS = ("#3f83c9", "#d97a1d", "#2f9b72", "#c0567f", "#7f6fc7", "#9a8a2d", "#4aa5a8", "#b0604f")
BARS = 50  # of a histogram
POINTS = 4000  # of a scatter plot: more show nothing new and make the page slow
NOTES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


def chart(title: str, data: list[Plot], x: str, y: str, **more: Any) -> Plot:
    """`x`, `y`: titles of the axes, with units; more: `wide`, `height` (pixels), `note`; plotly's layout."""
    page = {name: more.pop(name, value) for name, value in dict(wide=False, height=300, note="").items()}
    for axis, text in (("xaxis", x), ("yaxis", y)):
        more[axis] = dict(more.get(axis, {}), title={"text": text})
    return dict(page, title=title, data=data, layout=more)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def line(name: str, x: list, y: list, number: int, dash: str = "solid", **more: Any) -> Plot:
    stroke = dict(color=colour(number), dash=dash, width=1.6 if dash == "solid" else 1.2)
    return dict(type="scatter", mode="lines", name=name, x=x, y=y, line=stroke) | more


def bars(name: str, x: list, y: list, number: int = 0, **more: Any) -> Plot:
    return dict(type="bar", name=name, x=x, y=y, marker={"color": colour(number)}, **more)


def points(x: list, y: list, text: list[str], hover: str, **marker: Any) -> Plot:
    more = dict(hovertemplate=f"{hover}<extra></extra>", marker={"size": 6, **marker})
    return dict(type="scatter", mode="markers", x=x, y=y, text=text, **more)


def vertical(x: float, width: float = 1, color: str = "#888", **more: Any) -> Plot:
    """For `shapes`."""
    stroke = dict(dash="dot", width=width, color=color)
    return dict(type="line", xref="x", yref="paper", x0=x, x1=x, y0=0, y1=1, line=stroke, **more)


def histograms(found: Row) -> list[Plot]:
    charts = []
    for d in found["distributions"].values():
        first, counts = np.flatnonzero(d["counts"])[0], np.trim_zeros(d["counts"])
        joined = math.ceil(len(counts) / BARS)  # bins in a bar
        counts = np.add.reduceat(counts, np.arange(0, len(counts), joined))
        width = d["width"] * joined
        x = d["low"] + d["width"] * first + width * (np.arange(len(counts)) + 0.5)
        note = f"median {d['p50']:,.5g}, 90 % between {d['p5']:,.5g} and {d['p95']:,.5g}"
        data = [bars("segments", x.tolist(), counts.tolist(), width=width)]
        charts.append(chart(d["title"], data, d["unit"], "segments", height=230, note=note, bargap=0.03))
    return charts


def code_use(counts_KC: np.ndarray) -> Plot:
    levels, codes = counts_KC.shape
    share = counts_KC / np.maximum(counts_KC.sum(1, keepdims=True), 1) * codes
    doublings = np.log2(np.maximum(share, 1e-9)).clip(-5, 5).round(2).tolist()
    ticks = dict(tickvals=[-5, -2, 0, 2, 5], ticktext=["≤ 1/32 or dead", "1/4", "1", "4 ×", "≥ 32 ×"])
    scale = dict(ticks, title={"text": "against<br>an even share"})
    hover = "level %{y}, code %{x}<br>%{customdata:,} times, 2^%{z} × an even share<extra></extra>"
    heat = dict(type="heatmap", z=doublings, customdata=counts_KC.astype(int).tolist(), hovertemplate=hover)
    heat |= dict(zmin=-5, zmax=5, colorscale="Viridis", colorbar=scale, y=[str(k) for k in range(levels)])
    note = "even use is one colour; dark stripes are dead codes, bright ones codes that dominate"
    layout = dict(wide=True, height=90 + 34 * levels, yaxis=dict(autorange="reversed", type="category"))
    return chart("Code use", [heat], "code", "level", note=note, **layout)


def pitch(sums_2F: np.ndarray, frames: int, fmin_hz: float, bins_per_octave: int) -> Plot:
    mean, squares = sums_2F / max(frames, 1)
    upper = mean + np.sqrt(np.maximum(squares - mean**2, 0))
    hz = fmin_hz * 2 ** (np.arange(len(mean)) / bins_per_octave)
    x, names = np.round(hz, 2).tolist(), [f"{h:.0f} Hz, {note_name(h)}" for h in hz]
    data = [
        line("mean + standard deviation", x, upper.tolist(), 1, "dot", text=names),
        line("mean", x, mean.tolist(), 0, text=names, hovertemplate="%{text}: %{y:.4g}<extra></extra>"),
    ]
    octaves = [fmin_hz * 2**n for n in range(math.ceil(len(mean) / bins_per_octave) + 1)]
    ticks = [f"{h:.0f}<br>{note_name(h)}" for h in octaves]
    layout = dict(wide=True, xaxis=dict(type="log", tickvals=octaves, ticktext=ticks))
    note = "the answer of a model that reads no audio, and how far the truth strays from it"
    return chart("CQT mean by pitch", data, "pitch, Hz", "the column's value", note=note, **layout)


def note_name(hz: float) -> str:
    """The nearest note of A4 = 440 Hz."""
    octave, note = divmod(round(12 * math.log2(hz / 440)) + 57, 12)
    return f"{NOTES[note]}{octave}"


def loudness(corpus: Corpus) -> Plot | None:
    """A dot a segment of a fixed sample."""
    level, unit = ("rms_db", "RMS, dBFS") if "lufs" in corpus.missing else ("lufs", "loudness, LUFS")
    rows = corpus.rows(
        f"""SELECT round({level}, 2) AS level, round(silence, 4) AS silence, bandwidth_hz,
        coalesce(parse_filename(path, false, 'forward_slash'), '?') || '<br>' || key AS name
        FROM (SELECT * FROM named WHERE {level} IS NOT NULL ORDER BY hash(key) LIMIT {POINTS})"""
    )
    if not rows:
        return None
    levels, silence, bandwidth, names = map(list, zip(*map(dict.values, rows), strict=True))
    marker = dict(color=COLOURS[0])
    if "bandwidth_hz" not in corpus.missing:
        scale = {"title": {"text": "bandwidth,<br>Hz"}}
        marker = dict(color=bandwidth, colorscale="Viridis", cmin=0, cmax=RATE_HZ / 2, colorbar=scale)
    data = [points(levels, silence, names, "%{text}<br>%{x} · %{y}", opacity=0.75, **marker)]
    note = f"{len(rows):,} segments" + (", a sample" if len(rows) == POINTS else "")
    layout = dict(wide=True, height=380, note=note, yaxis={"range": [-0.03, 1.03]})
    return chart("Loudness against silence", data, unit, "silence, share of 10-ms frames", **layout)


def run(found: Row, times: Row | None) -> list[Plot]:
    if times is None:
        return []
    unit, factor = unit_of(times["seconds"][-1])
    x, axis = [round(s / factor, 4) for s in times["seconds"]], f"{unit} of work since the first shard"
    cuts = [vertical(pause["at_s"] / factor) for pause in times["pauses"]]
    note = f"{len(cuts)} pauses in which no shard was worked on are cut out (dotted lines)" if cuts else ""
    charts = []
    for what, series in (("stage", times["stages"]), ("host, decoding", times["hosts"])):
        data = [line(name, x, [round(v, 2) for v in y], i) for i, (name, y) in enumerate(series.items())]
        layout = dict(wide=True, note=note, shapes=cuts, showlegend=True)
        charts.append(chart(f"Throughput by {what}", data, axis, "audio seconds a second", **layout))
    columns = found["columns"]
    unit, factor = unit_of(max(c["wall_s"] or 0 for c in columns))
    stages = [c["stage"] for c in columns]
    wall, busy = ([(c[key] or 0) / factor for c in columns] for key in ("wall_s", "busy_s"))
    data = [bars("wall time of workers", stages, wall), bars("CPU time", stages, busy, 1)]
    layout = dict(height=280, barmode="group", showlegend=True)
    return [*charts, chart("Where the time went", data, "stage", unit, **layout)]


def unit_of(seconds: float) -> tuple[str, float]:
    return ("seconds", 1.0) if seconds < 180 else ("minutes", 60.0) if seconds < 7200 else ("hours", 3600.0)


def stragglers(corpus: Corpus) -> Plot | None:
    """A sample, always with the slowest."""
    rows = corpus.rows(
        f"""SELECT stage, round(hours, 4) AS hours, round(times_real_time, 2) AS speed,
        concat(shard, ' on ', host) AS name FROM shards WHERE times_real_time > 0
        QUALIFY row_number() OVER (ORDER BY times_real_time) <= {POINTS // 4}
        OR row_number() OVER (ORDER BY hash(shard), stage) <= {POINTS // 2}"""
    )
    data = []
    for number, stage in enumerate(dict.fromkeys(row["stage"] for row in rows)):
        own = [row for row in rows if row["stage"] == stage]
        x, y, names = ([row[key] for row in own] for key in ("hours", "speed", "name"))
        dots = points(x, y, names, "%{text}: %{y} × real time", color=colour(number))
        data.append(dict(dots, name=stage))
    layout = dict(height=280, yaxis=dict(type="log", dtick="D2"), showlegend=True)
    return chart("Shards", data, "hours of audio in the shard", "× real time", **layout)
