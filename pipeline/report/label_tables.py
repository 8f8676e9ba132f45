"""The tables of an OUT, from its `numbers`: the terminal shows all, the page those without a chart there."""

from typing import Any

from pipeline.report.table import MISSING, Column, Table, number, size
from stages.signal.rates import RATE_HZ

Numbers = dict[str, Any]
# Key in a row → its column.
COLUMNS = {name: Column(name) for name in ("stage", "reason", "shard", "host", "codec", "unit")}
COLUMNS |= {name: Column(name, "count") for name in ("shards", "retries", "hosts", "files", "level", "dead")}
COLUMNS |= {name: Column(name, "count") for name in ("channels", "recordings")}
COLUMNS |= {name: Column(name, "number") for name in ("hours", "stereo", "silence")}
COLUMNS |= {
    "name": Column("column"),
    "bytes": Column("size", "bytes"),
    "bytes_per_hour": Column("per hour", "bytes"),
    "frames_per_s": Column("frames/s", "number"),
    "wall_s": Column("wall", "duration"),
    "busy_s": Column("CPU", "duration"),
    "times_real_time": Column("× real time", "number", 0),
    "times_median": Column("× the median", "number", 1),
    "examples": Column("examples", "path"),
    "title": Column(""),
    "p5": Column("5 %", "number"),
    "p50": Column("median", "number"),
    "p95": Column("95 %", "number"),
    "counts": Column("distribution", "histogram"),
    "range": Column("from – to"),
    "used_of": Column("used", "count"),
    "perplexity": Column("perplexity", "number", 0),
    "of_size": Column("of its size", "share", 0),
    "share": Column("", "meter"),
    "top_code": Column("most frequent", "figures"),
    "top_share": Column("its share", "share", 1),
    "rate_hz": Column("rate", "count", unit="Hz"),
    "path": Column("file", "path"),
    "decoding_s": Column("decoding", "duration"),
    "seconds": Column("length", "duration"),
    "key": Column("segment"),
    "at_s": Column("at", "duration"),
    "length_s": Column("s", "number", 1),
    "lufs": Column("LUFS", "number", 1),
    "rms_db": Column("RMS dBFS", "number", 1),
    "peak_db": Column("peak dBFS", "number", 1),
    "clipping": Column("clipping", "number", 5),
    "bandwidth_hz": Column("bandwidth Hz", "number", 0),
    "entropy_bits": Column("code bits", "number"),
    "tuning_cents": Column("tuning cents", "number", 0),
    "cqt_mean": Column("CQT mean", "number"),
}


def chosen(keys: str) -> dict[str, Column]:
    return {key: COLUMNS[key] for key in keys.split()}


def all_of(found: Numbers) -> list[Table]:
    """In the order in which one wants to know it."""
    kinds = (columns, rejects, distributions, codes, sources, slowest_shards, slowest_files, longest_files)
    return [kind(found) for kind in kinds]


def columns(found: Numbers) -> Table:
    agreement = found["agreement"]
    differ = agreement["differ"]
    agree = f"{differ} shards differ, e.g. {agreement['examples'][0]}" if differ else "all shards agree"
    heads = chosen(
        "name shards bytes bytes_per_hour frames_per_s wall_s busy_s times_real_time retries hosts"
    )
    return Table("Columns", heads, found["columns"], f"frames of the columns: {agree}", is_warning=differ > 0)


def rejects(found: Numbers) -> Table:
    return Table("Rejected", chosen("files stage reason examples"), found["rejects"][:20])


def distributions(found: Numbers) -> Table:
    rows = []
    for d in found["distributions"].values():
        high = d["low"] + d["width"] * len(d["counts"])
        rows.append(d | {"range": f"{number(d['low'])} – {number(high)}"})
    return Table("Segments", chosen("title unit p5 p50 p95 counts range"), rows)


def codes(found: Numbers) -> Table:
    rows = [c | {"used_of": (c["used"], c["codes"]), "of_size": c["share"]} for c in found["codes"]]
    return Table("Code use", chosen("level used_of dead perplexity of_size share top_code top_share"), rows)


def sources(found: Numbers) -> Table:
    return Table("Sources", chosen("codec rate_hz channels recordings hours"), found["sources"][:10])


def slowest_shards(found: Numbers) -> Table:
    heads = chosen("stage shard host wall_s hours times_real_time times_median")
    return Table("Slowest shards", heads, found["slowest_shards"][:5])


def slowest_files(found: Numbers) -> Table:
    timed = found["timed_shards"]
    shards = sum(c["shards"] for c in found["columns"] if c["stage"] == "decode")
    part = f"; gathered for {timed:,} of {shards:,} shards" if timed < shards else ""
    rows = [
        row | {"path": row["path"] or row["recording"], "decoding_s": row["seconds"]}
        for row in found["slowest_files"][:5]
    ]
    heads = chosen("path shard host decoding_s times_real_time")
    return Table("Slowest files", heads, rows, f"by seconds lost against the mean speed{part}")


def longest_files(found: Numbers) -> Table:
    return Table("Longest files", chosen("path shard seconds"), found["longest_files"][:3])


def segments(rows: list[dict[str, Any]]) -> Table:
    """Rows of `named`."""
    heads = chosen("key path at_s length_s lufs rms_db silence clipping bandwidth_hz stereo entropy_bits")
    return Table("", heads, [row | {"at_s": row["start"] / RATE_HZ} for row in rows])


def amount(segments: int, recordings: int, hours: float) -> str:
    return f"{segments:,} segments of {recordings:,} recordings, {hours:,.2f} h"


def comparison(found: list[Numbers]) -> Table:
    """Several OUTs, a column each."""
    rows = []
    for missing, *own in zip((MISSING, MISSING, "not gathered", MISSING), *map(_figures, found), strict=True):
        names = dict.fromkeys(name for one in own for name in one)
        rows += [[name, *(one.get(name, missing) for one in own)] for name in names]
    heads = {0: Column("")} | {i: Column(f["out"], "figures") for i, f in enumerate(found, 1)}
    return Table("Compared", heads, rows)


def _figures(found: Numbers) -> tuple[dict[str, str], ...]:
    """Name → text of one OUT's totals, columns, distributions and codebooks."""
    totals = {
        "recordings": f"{found['recordings']:,}",
        "hours": number(found["hours"]),
        "segments": f"{found['segments']:,}",
        "shards": f"{found['shards']:,}",
        "size": size(found["bytes"]),
        "size per hour": size(found["bytes_per_hour"]),
        "rejected files": f"{sum(r['files'] for r in found['rejects']):,}",
    }
    columns, distributions, codes = {}, {}, {}
    for c in found["columns"]:
        columns[f"{c['stage']}: column"] = c["name"]
        columns[f"{c['stage']}: × real time"] = number(c["times_real_time"], 0)
        columns[f"{c['stage']}: size per hour"] = size(c["bytes_per_hour"])
    for d in found["distributions"].values():
        p5, p50, p95 = (number(d[key]) for key in ("p5", "p50", "p95"))
        distributions[f"{d['title']}, {d['unit']}: median [5 … 95 %]"] = f"{p50} [{p5} … {p95}]"
    for c in found["codes"]:
        codes[f"perplexity of level {c['level']}"] = f"{c['perplexity']:,.0f} of {c['codes']:,}"
    return totals, columns, distributions, codes
