"""`overtone status OUT`: what is planned, what is finished, what was refused."""

from typing import Any

import pyarrow.compute as pc

from pipeline import registry
from stages.shards import catalog
from stages.shards import record as records
from stages.shards.storage import Storage


def status(place: str) -> dict[str, Any]:
    """Counts of an OUT, from its plan and one listing a column; raises ValueError when it is none."""
    out = Storage(place)
    if not out.exists("plan.parquet"):
        raise ValueError(
            f"{place} {'is no folder' if out.is_gone() else 'holds no plan.parquet'}: give the OUT of "
            f"a `labels` run"
        )
    known = registry.read(out)
    with out.fetched("plan.parquet") as path:
        table = catalog.read_plan(path, ["recording", "shard", "duration_s", "tombstone", "split"])
    live = catalog.live(table)
    seconds = dict.fromkeys(catalog.shards_in_order(live), 0.0)
    for name, length in zip(live["shard"].to_pylist(), live["duration_s"].to_pylist(), strict=True):
        seconds[name] += length
    columns = {}
    for name in known.names if known else ():
        done = records.finished(out, name) & seconds.keys()
        columns[name] = {
            "shards": len(done),
            "hours_by_header": round(sum(seconds[s] for s in done) / 3600, 3),
        }
    rejected = (
        out.read_table("rejected.parquet", ["stage"])["stage"].to_pylist()
        if out.exists("rejected.parquet")
        else []
    )
    return {
        "out": place,
        "recordings": live.num_rows,
        "validation": int(pc.sum(pc.equal(live["split"], "valid")).as_py() or 0),
        "hours_by_header": round(sum(seconds.values()) / 3600, 3),
        "shards": len(seconds),
        "columns": columns,
        "tombstoned": table.num_rows - live.num_rows,
        "rejected": {stage: rejected.count(stage) for stage in sorted(set(rejected))},
        "finished": bool(columns) and all(c["shards"] == len(seconds) for c in columns.values()),
    }


def text(found: dict[str, Any]) -> str:
    lines = [
        f"{found['out']}: {found['recordings']} recordings, {found['hours_by_header']:.2f} h by their "
        f"headers, {found['validation']} for validation, {found['shards']} shards planned"
    ]
    lines += [
        f"  columns/{name:<16} {c['shards']:>6}/{found['shards']} shards {c['hours_by_header']:>9.2f} h"
        for name, c in found["columns"].items()
    ]
    lines += [f"  rejected at {stage}: {count}" for stage, count in found["rejected"].items()]
    if found["tombstoned"]:
        lines.append(f"  no longer used (edited, vanished, excluded): {found['tombstoned']}")
    lines.append("  finished" if found["finished"] else "  not finished: the same `labels` command goes on")
    return "\n".join(lines)
