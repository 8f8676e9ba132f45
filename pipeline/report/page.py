"""The page: one file with everything in it, plotly.js too, that opens from disk without a network."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from pipeline.report import charts, examples, pictures, terminal
from pipeline.report.anomalies import Anomaly, everything
from pipeline.report.corpus import Corpus
from pipeline.report.numbers import counts
from pipeline.report.terminal import name, number, size, span
from pipeline.report.timeline import timeline
from stages.shards import histograms
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

NAME = "report/index.html"
TEMPLATES = Path(__file__).parent / "templates"
NUMBERS = (  # of a listening row: column of `named`, head, digits
    ("lufs", "LUFS", 1),
    ("peak_db", "peak dBFS", 1),
    ("silence", "silence", 2),
    ("clipping", "clipping", 5),
    ("bandwidth_hz", "bandwidth Hz", 0),
    ("stereo", "stereo", 2),
    ("entropy_bits", "code bits", 2),
    ("tuning_cents", "tuning cents", 0),
    ("cqt_mean", "CQT mean", 2),
)


@dataclass
class Table:
    """Rows of (sort value, text) cells; a click on a head sorts."""

    title: str
    heads: list[str]
    rows: list[list[tuple[Any, str]]]
    note: str = ""


@dataclass
class Section:
    title: str
    charts: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    note: str = ""


def of_corpus(corpus: Corpus, found: dict[str, Any], odd: list[Anomaly]) -> str:
    """Write OUT/report/index.html; returns where it is."""
    tiles = [
        ("recordings", f"{found['recordings']:,}"),
        ("hours", f"{found['hours']:,.2f}"),
        ("segments", f"{found['segments']:,}"),
        ("shards", f"{found['shards']:,}"),
        ("size", size(found["bytes"])),
        ("per hour", size(found["bytes_per_hour"])),
        ("for validation", f"{found['validation']:,}"),
        ("rejected", f"{sum(r['files'] for r in found['rejects']):,}"),
    ]
    lacking = ", ".join(found["not_gathered"])
    note = f"Not gathered by the version that labelled this OUT: {lacking}." if lacking else ""
    sections = [
        Section("What there is", tables=[_plain(terminal.columns(found)), _plain(terminal.sources(found))]),
        Section(
            "Segments",
            charts=[c for c in (charts.loudness(corpus), *charts.histograms(found)) if c],
            note=note,
        ),
        Section(
            "Codes and pitch",
            charts=_labels(corpus),
            tables=[_plain(terminal.codes(found))],
            note="" if found["codes"] else "Code use was not gathered by the version that labelled this OUT.",
        ),
        Section(
            "The run",
            charts=[c for c in (*charts.run(found, timeline(corpus)), charts.stragglers(corpus)) if c],
            tables=[
                _plain(terminal.slow(found)),
                _plain(terminal.slow_files(found)),
                _plain(terminal.long_files(found)),
            ],
        ),
        Section(
            "Rejected",
            tables=[_plain(terminal.rejects(found))],
            note="" if found["rejects"] else "Nothing was rejected.",
        ),
    ]
    return write(corpus.out, "labels", corpus.place, tiles, sections, odd, _listening(corpus, found))


def of_runs(runs: list[Any]) -> str:
    """Write RUN/report/index.html of the first run, with the curves of all; returns where it is."""
    from pipeline.report import training, training_charts

    sections = [Section(title, charts=own) for title, own in training_charts.charts(runs).items()]
    sections.insert(0, Section("Runs", tables=[_plain(training.table(runs))]))
    return write(
        Storage(runs[0].place),
        "training",
        ", ".join(run.place for run in runs),
        training.tiles(runs),
        sections,
    )


def write(
    out: Storage,
    kind: str,
    place: str,
    tiles: list[tuple[str, str]],
    sections: list[Section],
    odd: list[Anomaly] = (),
    heard: list[dict[str, Any]] = (),
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    for section in sections:
        section.charts = [c for c in section.charts if c["data"]]
        section.tables = [t for t in section.tables if t.rows]
    sections = [section for section in sections if section.charts or section.tables or section.note]
    plots = [c for section in sections for c in section.charts]
    for place_, plot in enumerate(plots):
        plot["id"] = f"plot{place_}"
    figures = json.dumps(
        [{key: plot[key] for key in ("id", "data", "layout")} for plot in plots], allow_nan=False
    ).replace("</", "<\\/")
    html = environment.get_template("page.html").render(
        kind=kind,
        place=place,
        tiles=tiles,
        sections=sections,
        odd=odd,
        everything=everything(list(odd)),
        heard=heard,
        numbers=NUMBERS,
        figures=figures,
        plotly=plotly.offline.get_plotlyjs(),
        script=(TEMPLATES / "page.js").read_text(),
        style=(TEMPLATES / "page.css").read_text(),
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    out.write(NAME, html.encode())
    return out.path(NAME) if out.is_local else f"{out.root}/{NAME}"


def _labels(corpus: Corpus) -> list[dict[str, Any]]:
    """Plots of the label columns' sums, of those that were gathered."""
    found, current = [], corpus.registry.current
    if (used := counts(corpus)) is not None:
        found.append(charts.code_use(used))
    if "cqt" in current:
        own, shards = histograms.read(corpus.out, current["cqt"])
        recipe = corpus.registry.columns[current["cqt"]]
        if shards:
            frames = corpus.one(
                'SELECT sum(frames)::BIGINT AS n FROM shards WHERE "column" = ?', current["cqt"]
            )["n"]
            found.append(charts.pitch(own["cqt"], frames, recipe["fmin_hz"], int(recipe["bins_per_octave"])))
    return found


def _listening(corpus: Corpus, found: dict[str, Any]) -> list[dict[str, Any]]:
    codes = found["codes"][0]["codes"] if found["codes"] else 0
    rows = []
    for one in examples.read_examples(corpus):
        row = one.row
        codebook = codes or int(one.codes_TK.max(initial=1)) + 1 if one.codes_TK is not None else 0
        rows.append(
            {
                "key": row["key"],
                "file": name(row["path"] or "?"),
                "at": span(row["start"] / RATE_HZ),
                "start": row["start"],
                "length": f"{row['length_s']:.1f} s",
                "why": ", ".join(one.why),
                "path": row["path"],
                "numbers": [(row[field], number(row[field], digits)) for field, _, digits in NUMBERS],
                "wave": pictures.waveform(one.wave_N),
                "sound": pictures.opus(one.wave_N),
                "cqt": pictures.cqt(one.cqt_TF, one.log) if one.cqt_TF is not None else None,
                "codes": pictures.codes(one.codes_TK, codebook) if one.codes_TK is not None else None,
            }
        )
    return rows


def _plain(table: Any) -> Table:
    """A terminal's table as the page's: the same numbers, said once."""
    from rich.text import Text

    columns = [[Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns]
    rows = [[(sortable(text), text) for text in row] for row in zip(*columns, strict=True)]
    note = Text.from_markup(str(table.caption or "")).plain
    return Table(str(table.title or ""), [str(column.header) for column in table.columns], rows, note)


UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "s": 1}


def sortable(text: str) -> float | str:
    """What a cell sorts by: its number, with its unit's size, or its text."""
    head, _, unit = text.partition(" ")
    value = head.replace(",", "").rstrip("%")
    try:
        if ":" in value:
            large, small = value.split(":")
            return (float(large) * 60 + float(small)) * (60 if unit == "h" else 1)
        return float(value) * UNITS.get(unit, 1)
    except ValueError:
        return text
