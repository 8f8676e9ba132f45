"""Tables of an OUT; the terminal shows all, the page those without a chart there."""

from pipeline.report.corpus import Row
from pipeline.report.table import MISSING, Column, Table, chosen, number
from stages.signal.rates import RATE_HZ


def tables(found: Row) -> dict[str, Table]:
    """By title, in the order in which one wants to know them."""
    decoded = sum(c["shards"] for c in found["columns"] if c["stage"] == "decode")
    timed, differ = found["timed_shards"], found["agreement"]["differ"]
    part = f"; gathered for {timed:,} of {decoded:,} shards" if timed < decoded else ""
    agree = "all shards agree"
    if differ:
        agree = f"{differ} shards differ, e.g. {found['agreement']['examples'][0]}"
    notes = {
        "Columns": (f"frames of the columns: {agree}", differ > 0),
        "Slowest files": (f"by seconds lost against the mean speed{part}",),
    }
    segments = []
    for d in found["distributions"].values():
        high = d["low"] + d["width"] * len(d["counts"])
        segments.append(d | {"range": f"{number(d['low'])} – {number(high)}"})
    files = [
        r | {"path": r["path"] or r["recording"], "decoding_s": r["seconds"]} for r in found["slowest_files"]
    ]
    codes = [c | {"used_of": (c["used"], c["codes"]), "of_size": c["share"]} for c in found["codes"]]
    sizes = "name shards bytes bytes_per_hour frames_per_s wall_s busy_s times_real_time retries hosts"
    slow_shards = "stage shard host wall_s hours times_real_time times_median"
    tables = {
        "Columns": (sizes, found["columns"]),
        "Rejected": ("files stage reason examples", found["rejects"][:20]),
        "Segments": ("title unit p5 p50 p95 counts range", segments),
        "Code use": ("level used_of dead perplexity of_size share top_code top_share", codes),
        "Sources": ("codec rate_hz channels recordings hours", found["sources"][:10]),
        "Slowest shards": (slow_shards, found["slowest_shards"][:5]),
        "Slowest files": ("path shard host decoding_s times_real_time", files[:5]),
        "Longest files": ("path shard seconds", found["longest_files"][:3]),
    }
    return {
        name: Table(name, chosen(keys), rows, *notes.get(name, ())) for name, (keys, rows) in tables.items()
    }


def segments(rows: list[Row]) -> Table:
    heads = chosen("key path at_s length_s lufs rms_db silence clipping bandwidth_hz stereo entropy_bits")
    return Table("", heads, [row | {"at_s": row["start"] / RATE_HZ} for row in rows])


def amount(segments: int, recordings: int, hours: float) -> str:
    return f"{segments:,} segments of {recordings:,} recordings, {hours:,.2f} h"


def comparison(found: list[Row]) -> Table:
    """A column an OUT."""
    rows = []
    for missing, *own in zip((MISSING, MISSING, "not gathered", MISSING), *map(_figures, found), strict=True):
        names = dict.fromkeys(name for one in own for name in one)
        rows += [[name, *(one.get(name, missing) for one in own)] for name in names]
    heads = {0: Column("")} | {i: Column(f["out"], "figures") for i, f in enumerate(found, 1)}
    return Table("Compared", heads, rows)


def totals(found: Row) -> dict[str, str]:
    rejected = sum(row["files"] for row in found["rejects"])
    keys = "recordings hours segments shards bytes bytes_per_hour validation rejected"
    return _texts(keys, found | {"rejected": rejected})


def _texts(keys: str, row: Row) -> dict[str, str]:
    return {column.head: column.text(row[key]) for key, column in chosen(keys).items()}


def _figures(found: Row) -> tuple[dict[str, str], ...]:
    """Of totals, columns, distributions and codebooks."""
    columns, distributions = {}, {}
    for row in found["columns"]:
        own = _texts("name times_real_time bytes_per_hour", row)
        columns |= {f"{row['stage']}: {name}": text for name, text in own.items()}
    for d in found["distributions"].values():
        text = f"{number(d['p50'])} [{number(d['p5'])} … {number(d['p95'])}]"
        distributions[f"{d['title']}, {d['unit']}: median [5 … 95 %]"] = text
    codes = {
        f"perplexity of level {c['level']}": f"{c['perplexity']:,.0f} of {c['codes']:,}"
        for c in found["codes"]
    }
    return totals(found), columns, distributions, codes
