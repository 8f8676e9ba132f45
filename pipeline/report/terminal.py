"""The terminal view of an OUT: rich tables and small bars of what `numbers` and `oddities` found."""

import math
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.report.anomalies import Anomaly, everything
from stages.signal.rates import RATE_HZ

BARS = "▁▂▃▄▅▆▇█"
BAR_WIDTH = 40


def show(console: Console, found: dict[str, Any], odd: list[Anomaly]) -> None:
    """Everything, in the order one wants to know it."""
    console.print(
        f"[bold]{escape(found['out'])}[/]  {found['recordings']:,} recordings ({found['validation']:,} for "
        f"validation), {found['hours']:,.2f} h, {found['segments']:,} segments in {found['shards']:,} "
        f"shards, {size(found['bytes'])}"
    )
    tables = (columns, rejects, distributions, codes, sources, slow, slow_files, long_files)
    for table in (make(found) for make in tables):
        if table.row_count:
            console.print()
            console.print(table)
    if found["not_gathered"]:
        console.print(
            f"\nnot gathered by the version that labelled this OUT: {', '.join(found['not_gathered'])}"
        )
    _worth_a_look(console, odd)


def columns(found: dict[str, Any]) -> Table:
    agreement = found["agreement"]
    agree = (
        "all shards agree"
        if not agreement["differ"]
        else f"[red]{agreement['differ']} shards differ, e.g. {agreement['examples'][0]}[/]"
    )
    table = columns_table(
        "column",
        ">shards",
        ">size",
        ">per hour",
        ">frames/s",
        ">wall",
        ">CPU",
        ">× real time",
        ">retries",
        ">hosts",
        title="Columns",
        caption=f"frames of the columns: {agree}",
    )
    for c in found["columns"]:
        table.add_row(
            c["name"],
            f"{c['shards']:,}",
            size(c["bytes"]),
            size(c["bytes_per_hour"]),
            number(c["frames_per_s"]),
            span(c["wall_s"]),
            span(c["busy_s"]),
            number(c["times_real_time"], 0),
            "–" if c["retries"] is None else f"{c['retries']:,}",
            str(c["hosts"]),
        )
    return table


def rejects(found: dict[str, Any]) -> Table:
    table = columns_table(">files", "stage", "reason", "examples", title="Rejected")
    for row in found["rejects"][:20]:
        table.add_row(
            f"{row['files']:,}",
            row["stage"],
            escape(row["reason"]),
            escape(", ".join(map(name, row["examples"]))),
        )
    return table


def distributions(found: dict[str, Any]) -> Table:
    table = columns_table(
        "", "unit", ">5 %", ">median", ">95 %", "distribution", "from – to", title="Segments"
    )
    for d in found["distributions"].values():
        low, high = d["low"], d["low"] + d["width"] * len(d["counts"])
        table.add_row(
            d["title"],
            d["unit"],
            number(d["p5"]),
            number(d["p50"]),
            number(d["p95"]),
            bar(d["counts"]),
            f"{number(low)} – {number(high)}",
        )
    return table


def codes(found: dict[str, Any]) -> Table:
    table = columns_table(
        ">level",
        ">used",
        ">dead",
        ">perplexity",
        "of its size",
        "",
        ">most frequent",
        ">its share",
        title="Code use",
    )
    for c in found["codes"]:
        full = round(c["share"] * 20)
        colour = "red" if c["share"] < 0.1 else "green"
        table.add_row(
            str(c["level"]),
            f"{c['used']:,} / {c['codes']:,}",
            f"{c['dead']:,}",
            f"{c['perplexity']:,.0f}",
            f"{c['share']:.0%}",
            f"[{colour}]{'█' * full}[/][dim]{'░' * (20 - full)}[/]",
            str(c["top_code"]),
            f"{c['top_share']:.1%}",
        )
    return table


def sources(found: dict[str, Any]) -> Table:
    table = columns_table("codec", ">rate", ">channels", ">recordings", ">hours", title="Sources")
    for s in found["sources"][:10]:
        table.add_row(
            s["codec"] or "?",
            f"{s['rate_hz'] or 0:,} Hz",
            str(s["channels"]),
            f"{s['recordings']:,}",
            f"{s['hours']:,.2f}",
        )
    return table


def slow(found: dict[str, Any]) -> Table:
    table = columns_table(
        "stage", "shard", "host", ">wall", ">hours", ">× real time", ">× the median", title="Slowest shards"
    )
    for row in found["slowest_shards"][:5]:
        table.add_row(
            row["stage"],
            row["shard"],
            row["host"] or "?",
            span(row["wall_s"]),
            number(row["hours"]),
            number(row["times_real_time"], 0),
            number(row["times_median"], 1),
        )
    return table


def slow_files(found: dict[str, Any]) -> Table:
    timed, shards = (
        found["timed_shards"],
        sum(c["shards"] for c in found["columns"] if c["stage"] == "decode"),
    )
    some = f"; gathered for {timed:,} of {shards:,} shards" if timed < shards else ""
    table = columns_table(
        "file",
        "shard",
        "host",
        ">decoding",
        ">× real time",
        title="Slowest files",
        caption=f"by seconds lost against the mean speed{some}",
    )
    for row in found["slowest_files"][:5]:
        table.add_row(
            escape(name(row["path"] or row["recording"])),
            row["shard"],
            row["host"] or "?",
            span(row["seconds"]),
            number(row["times_real_time"], 0),
        )
    return table


def long_files(found: dict[str, Any]) -> Table:
    table = columns_table("file", "shard", ">length", title="Longest files")
    for row in found["longest_files"][:3]:
        table.add_row(escape(name(row["path"] or "?")), row["shard"], span(row["seconds"]))
    return table


def comparison(console: Console, found: list[dict[str, Any]]) -> None:
    """Several OUTs side by side."""
    table = columns_table("", *(f">{escape(f['out'])}" for f in found), title="Compared")
    for what, value in (
        ("recordings", lambda f: f"{f['recordings']:,}"),
        ("hours", lambda f: f"{f['hours']:,.2f}"),
        ("segments", lambda f: f"{f['segments']:,}"),
        ("shards", lambda f: f"{f['shards']:,}"),
        ("size", lambda f: size(f["bytes"])),
        ("size per hour", lambda f: size(f["bytes_per_hour"])),
        ("rejected files", lambda f: f"{sum(r['files'] for r in f['rejects']):,}"),
    ):
        table.add_row(what, *map(value, found))
    for kind in dict.fromkeys(c["stage"] for f in found for c in f["columns"]):
        own = [next((c for c in f["columns"] if c["stage"] == kind), None) for f in found]
        table.add_row(f"{kind}: column", *(c["name"] if c else "–" for c in own))
        table.add_row(f"{kind}: × real time", *(number(c["times_real_time"], 0) if c else "–" for c in own))
        table.add_row(f"{kind}: size per hour", *(size(c["bytes_per_hour"]) if c else "–" for c in own))
    for key in dict.fromkeys(k for f in found for k in f["distributions"]):
        own = [f["distributions"].get(key) for f in found]
        said = next(d for d in own if d)
        table.add_row(
            f"{said['title']}, {said['unit']}: median [5 … 95 %]",
            *(
                f"{number(d['p50'])} [{number(d['p5'])} … {number(d['p95'])}]" if d else "not gathered"
                for d in own
            ),
        )
    for level in range(max(len(f["codes"]) for f in found)):
        own = [f["codes"][level] if level < len(f["codes"]) else None for f in found]
        table.add_row(
            f"perplexity of level {level}",
            *(f"{c['perplexity']:,.0f} of {c['codes']:,}" if c else "–" for c in own),
        )
    console.print(table)


def segments(console: Console, rows: list[dict[str, Any]], counted: dict[str, Any]) -> None:
    """Rows of `named` as a table, and how many there are in all."""
    table = columns_table(
        "segment",
        "file",
        ">at",
        ">s",
        ">LUFS",
        ">RMS dBFS",
        ">silence",
        ">clipping",
        ">bandwidth Hz",
        ">stereo",
        ">bits",
    )
    for r in rows:
        table.add_row(
            r["key"],
            escape(name(r["path"] or "?")),
            span(r["start"] / RATE_HZ),
            number(r["length_s"], 1),
            number(r["lufs"], 1),
            number(r["rms_db"], 1),
            number(r["silence"], 3),
            number(r["clipping"], 5),
            number(r["bandwidth_hz"], 0),
            number(r["stereo"]),
            number(r["entropy_bits"]),
        )
    console.print(table)
    console.print(
        f"{counted['segments']:,} segments of {counted['recordings']:,} recordings, {counted['hours']:,.2f} h"
        + (f"; {len(rows)} shown" if counted["segments"] > len(rows) else "")
    )


def _worth_a_look(console: Console, odd: list[Anomaly]) -> None:
    if not odd:
        console.print("\nworth a look: nothing odd was found")
        return
    console.print("\n[bold]Worth a look[/]")
    for o in odd:
        many = (
            f"{o.segments:,} segments of {o.recordings:,} recordings, {o.hours:,.2f} h: "
            if o.segments
            else ""
        )
        console.print(f"  [yellow]{o.what}[/]  {many}{escape(o.why)}", highlight=False)
        if o.examples:
            console.print(f"      e.g. {escape(', '.join(o.examples))}", highlight=False)
        console.print(f"      {escape(o.exclude)}", highlight=False, soft_wrap=True)
    whole = everything(odd)
    if whole and sum(bool(o.where) for o in odd) > 1:
        console.print(
            f"  all of it left out of training:\n      {escape(whole)}", highlight=False, soft_wrap=True
        )


def columns_table(*heads: str, title: str = "", caption: str = "") -> Table:
    """`>` before a head: numbers, to the right."""
    table = Table(
        box=None,
        pad_edge=False,
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )
    for head in heads:
        table.add_column(
            head.lstrip(">"), justify="right" if head.startswith(">") else "left", header_style="dim"
        )
    return table


def bar(counts: Iterable[int], width: int = BAR_WIDTH) -> str:
    """A histogram of any length as `width` characters; what is there at all is never blank."""
    counts = list(counts)
    joined = [sum(counts[i * len(counts) // width : (i + 1) * len(counts) // width]) for i in range(width)]
    top = max(joined) or 1
    return "".join(" " if not n else BARS[max(0, math.ceil(n / top * len(BARS)) - 1)] for n in joined)


def spark(values: list[float], width: int = BAR_WIDTH) -> str:
    """A curve as `width` characters, from its least to its greatest value."""
    width = min(width, len(values))
    parts = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / ((high - low) or 1) * (len(BARS) - 1))] for mean in means)


def number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    if value and abs(value) < 10**-digits / 2 and digits:
        return f"{value:.1g}"
    return f"{value:,.{digits}f}"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.2f} TiB"


def span(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{minutes}:{int(seconds) % 60:02} min" if not hours else f"{hours:,}:{minutes % 60:02} h"


def name(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(PurePosixPath(path).parts[-2:])
