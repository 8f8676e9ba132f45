"""`overtone status OUT`: what is planned, finished, rejected; `overtone status RUN`: where it stands."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from pipeline.labelling import registry
from stages.pretrain.run.display import duration, line
from stages.shards import catalog
from stages.shards import record as records
from stages.shards.storage import Storage


def status(place: str) -> tuple[dict[str, Any], str]:
    """What stands in an OUT or a RUN, as plain data and as text; raises ValueError when it is neither."""
    if is_run(place):
        found = run_status(place)
        return found, run_text(found)
    found = labels_status(place)
    return found, labels_text(found)


def labels_status(place: str) -> dict[str, Any]:
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
    seconds = dict.fromkeys(catalog.shard_slices(live), 0.0)
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


def labels_text(found: dict[str, Any]) -> str:
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


def is_run(place: str) -> bool:
    """Whether a folder is a training run's."""
    return (Path(place) / "data.json").exists() and (Path(place) / "config.yaml").exists()


def run_status(place: str) -> dict[str, Any]:
    """The last lines of each kind, restarts, checkpoints; raises ValueError when metrics.jsonl is not
    readable."""
    run, kinds, restarts = Path(place), {}, -1
    metrics = run / "metrics.jsonl"
    for number, text in enumerate(metrics.read_text().splitlines() if metrics.exists() else (), 1):
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ValueError(
                f"{metrics}, line {number}: {error}; the run itself cuts damaged lines off when it goes on"
            ) from None
        kinds[row["kind"]] = row
        restarts += row["kind"] == "start"
    data = json.loads((run / "data.json").read_text())
    start, update = kinds.get("start", {}), kinds.get("update", {})
    return {
        "run": place,
        "update": update.get("update", 0),
        "updates": start.get("updates"),
        "restarts": max(0, restarts),
        "hours": data["hours"],
        "finished": "end" in kinds,
        "last_seen_s": round(time.time() - update["time"]) if update else None,
        "update_row": update or None,
        "valid_row": kinds.get("valid"),
        "checkpoint": kinds.get("checkpoint", {}).get("path"),
    }


def run_text(found: dict[str, Any]) -> str:
    lines = [
        f"{found['run']}: update {found['update']} of {found['updates']}, {found['hours']:.2f} h of "
        f"audio, {found['restarts']} restarts"
    ]
    lines += ["  " + line(row, found["updates"]) for row in (found["update_row"], found["valid_row"]) if row]
    if found["finished"]:
        return "\n".join([*lines, f"  finished; newest checkpoint {found['checkpoint']}"])
    seen = (
        f"last update {duration(found['last_seen_s'])} ago"
        if found["last_seen_s"] is not None
        else "no update yet"
    )
    return "\n".join(
        [
            *lines,
            f"  {seen}; newest checkpoint {found['checkpoint'] or 'none'}; the same `train` command "
            f"goes on from there",
        ]
    )
