"""The page: one file with all it needs, plotly.js too; it opens without a network."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from pipeline.report import charts, examples, label_tables, pictures
from pipeline.report.anomalies import Anomaly, everything
from pipeline.report.corpus import Corpus, Row
from pipeline.report.numbers import code_counts
from pipeline.report.table import Table, chosen, short, span
from pipeline.report.timeline import timeline
from stages.shards import histograms
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

NAME = "report/index.html"
TEMPLATES = Path(__file__).parent / "templates"
EXAMPLE_FIGURES = "lufs peak_db silence clipping bandwidth_hz stereo entropy_bits tuning_cents cqt_mean"
# A file's name may hold </script>, which would end the element that the JSON is in.
JSON_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&"})


@dataclass
class Section:
    title: str
    charts: list[Row | None]
    tables: list[Table] = field(default_factory=list)
    note: str = ""


def of_corpus(corpus: Corpus, found: Row, anomalies: list[Anomaly]) -> str:
    tables, version = label_tables.tables(found), "gathered by the version that labelled this OUT."
    lacking = ", ".join(found["not_gathered"])
    lacking = lacking and f"Not {version[:-1]}: {lacking}."
    no_codes = "" if found["codes"] else f"Code use was not {version}"
    no_rejects = "" if found["rejects"] else "Nothing was rejected."
    of_run = [*charts.run(found, timeline(corpus)), charts.stragglers(corpus)]
    slow = [tables[name] for name in ("Slowest shards", "Slowest files", "Longest files")]
    sections = [
        Section("What there is", [], [tables["Columns"], tables["Sources"]]),
        Section("Segments", [charts.loudness(corpus), *charts.histograms(found)], note=lacking),
        Section("Codes and pitch", _label_charts(corpus), [tables["Code use"]], no_codes),
        Section("The run", of_run, slow),
        Section("Rejected", [], [tables["Rejected"]], no_rejects),
    ]
    values = {"anomalies": anomalies, "everything": everything(anomalies)}
    values["examples"] = _examples(corpus, found)
    return _write("labels", corpus.out, corpus.place, label_tables.totals(found), sections, **values)


def of_runs(runs: list[Any]) -> str:
    """Written to the first run."""
    from pipeline.report import training, training_charts

    sections = [Section("Runs", [], [training.table(runs)])]
    sections += [Section(title, plots) for title, plots in training_charts.charts(runs).items()]
    place = ", ".join(run.place for run in runs)
    return _write("training", Storage(runs[0].place), place, training.tiles(runs), sections)


def _write(
    kind: str, out: Storage, place: str, tiles: dict[str, str], sections: list[Section], **values: Any
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    figures = []
    for section in sections:
        section.charts = [chart for chart in section.charts if chart and chart["data"]]
        section.tables = [table for table in section.tables if table.rows]
        for plot in section.charts:
            plot["id"] = f"plot{len(figures)}"
            figures.append({key: plot[key] for key in ("id", "data", "layout")})
    html = environment.get_template("page.html").render(
        kind=kind,
        place=place,
        tiles=tiles,
        sections=[section for section in sections if section.charts or section.tables or section.note],
        example_figures=chosen(EXAMPLE_FIGURES),
        amount=label_tables.amount,
        figures=json.dumps(figures, allow_nan=False).translate(JSON_ESCAPES),
        plotly=plotly.offline.get_plotlyjs(),
        script=(TEMPLATES / "page.js").read_text(),
        style=(TEMPLATES / "page.css").read_text(),
        made=time.strftime("%Y-%m-%d %H:%M"),
        **values,
    )
    out.write(NAME, html.encode())
    return out.path(NAME) if out.is_local else f"{out.root}/{NAME}"


def _label_charts(corpus: Corpus) -> list[Row]:
    plots, name = [], corpus.registry.current.get("cqt")
    if (counts := code_counts(corpus)) is not None:
        plots.append(charts.code_use(counts))
    sums, shards = histograms.read(corpus.out, name) if name else ({}, 0)
    if shards:
        recipe = corpus.registry.columns[name]
        query = 'SELECT sum(frames)::BIGINT AS n FROM shards WHERE "column" = ?'
        frames, octave = corpus.one(query, name)["n"], int(recipe["bins_per_octave"])
        plots.append(charts.pitch(sums["cqt"], frames, recipe["fmin_hz"], octave))
    return plots


def _examples(corpus: Corpus, found: Row) -> list[Row]:
    size = found["codes"][0]["codes"] if found["codes"] else 0
    rows = []
    for one in examples.read_examples(corpus):
        row = one.row | {
            "file": short(one.row["path"] or "?"),
            "at": span(one.row["start"] / RATE_HZ),
            "length": f"{one.row['length_s']:.1f} s",
            "why": ", ".join(one.why),
            "wave": pictures.waveform(one.wave_N),
            "sound": pictures.opus(one.wave_N),
        }
        if one.cqt_TF is not None:
            row["cqt"] = pictures.cqt(one.cqt_TF, one.log)
        if one.codes_TK is not None:
            row["codes"] = pictures.codes(one.codes_TK, size or int(one.codes_TK.max(initial=1)) + 1)
        rows.append(row)
    return rows
