"""`overtone status OUT`: what is planned, finished, rejected; `overtone status RUN`: how far it is."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from pipeline.labelling import registry
from pipeline.labelling.catalogs import decoded_seconds
from pipeline.labelling.summary import machine_lines
from stages.pretrain.run.display import duration, line
from stages.pretrain.run.rows import renamed, with_old_names
from stages.shards import catalog, record
from stages.shards.storage import Storage


def status(place: str) -> tuple[dict[str, Any], str]:
    """As plain data and as text; ValueError for neither."""
    is_run = (Path(place) / "data.json").exists() and (Path(place) / "config.yaml").exists()
    return _run(place) if is_run else _labels(place)


def _labels(place: str) -> tuple[dict[str, Any], str]:
    out = Storage(place)
    if not out.exists("plan.parquet"):
        problem = "is no folder" if out.is_gone() else "holds no plan.parquet"
        raise ValueError(f"{place} {problem}: give the OUT of a `labels` run")
    known = registry.read(out)
    with out.fetched("plan.parquet") as path:
        columns = ["recording", "shard", "size", "duration_s", "tombstone", "split"]
        table = catalog.read_plan(path, columns)
    live, decoded = catalog.live(table), decoded_seconds(out, known.names if known else ())
    likely, slices = catalog.likely_seconds(live), catalog.shard_slices(live)
    seconds = {name: float(likely[start : start + count].sum()) for name, (start, count) in slices.items()}
    by_header = sum(s for name, s in seconds.items() if name not in decoded)
    seconds = {name: decoded.get(name, s) for name, s in seconds.items()}

    def hours(shards: Iterable[str]) -> float:
        return round(sum(seconds[name] for name in shards) / 3600, 6)

    columns = {}
    for name in known.names if known else ():
        done = record.finished(out, name) & seconds.keys()
        columns[name] = {"shards": len(done), "hours": hours(done), "hours_by_header": hours(done)}
    rejected = []
    if out.exists("rejected.parquet"):
        rejected = out.read_table("rejected.parquet", ["stage"])["stage"].to_pylist()
    found = {
        "out": place,
        "recordings": live.num_rows,
        "validation": pc.sum(pc.equal(live["split"], "valid")).as_py() or 0,
        "hours": hours(seconds),  # decoded; of shards that are not finished, by their headers
        "hours_not_decoded": round(by_header / 3600, 6),
        "hours_by_header": hours(seconds),  # the name of `hours` before it was decoded where it can be
        "shards": len(seconds),
        "columns": columns,
        "tombstoned": table.num_rows - live.num_rows,
        "rejected": dict(sorted(Counter(rejected).items())),
        "finished": bool(columns) and all(c["shards"] == len(seconds) for c in columns.values()),
    }
    left = found["hours_not_decoded"]
    by_header = f" ({left:.2f} h by their headers)" if left else ""
    lines = [
        f"{found['out']}: {found['recordings']} recordings, {found['hours']:.2f} h{by_header}, "
        f"{found['validation']} for validation, {found['shards']} shards planned"
    ]
    lines += [
        f"  columns/{name:<16} {c['shards']:>6}/{found['shards']} shards {c['hours']:>9.2f} h"
        for name, c in columns.items()
    ]
    if known:
        lines += [f"  {line}" for line in machine_lines(out, known)]
    lines += [f"  rejected at {stage}: {count}" for stage, count in found["rejected"].items()]
    if found["tombstoned"]:
        lines.append(f"  no longer used (edited, vanished, excluded): {found['tombstoned']}")
    lines.append("  finished" if found["finished"] else "  not finished: the same `labels` command goes on")
    return found, "\n".join(lines)


def _run(place: str) -> tuple[dict[str, Any], str]:
    run, kinds, starts = Path(place), {}, 0
    metrics = run / "metrics.jsonl"
    for number, text in enumerate(metrics.read_text().splitlines() if metrics.exists() else (), 1):
        try:
            row = renamed(json.loads(text))
        except ValueError as error:
            raise ValueError(
                f"{metrics}, line {number}: {error}; the run itself cuts damaged lines off when it goes on"
            ) from None
        kinds[row["kind"]] = with_old_names(row)
        starts += row["kind"] == "start"
    update = kinds.get("update")
    found = {
        "run": place,
        "update": update["update"] if update else 0,
        "updates": kinds.get("start", {}).get("updates"),
        "restarts": max(0, starts - 1),
        "hours": json.loads((run / "data.json").read_text())["hours"],
        "finished": "end" in kinds,
        "last_seen_s": round(time.time() - update["time"]) if update else None,
        "update_row": update,
        "valid_row": kinds.get("valid"),
        "checkpoint": kinds.get("checkpoint", {}).get("path"),
    }
    lines = [
        f"{place}: update {found['update']} of {found['updates']}, {found['hours']:.2f} h of audio, "
        f"{found['restarts']} restarts"
    ]
    lines += [line(row, found["updates"]) for row in (update, found["valid_row"]) if row]
    checkpoint, seen = found["checkpoint"], found["last_seen_s"]
    if found["finished"]:
        lines.append(f"finished; newest checkpoint {checkpoint}")
    else:
        last = "no update yet" if seen is None else f"last update {duration(seen)} ago"
        goes_on = "the same `train` command goes on from there"
        lines.append(f"{last}; newest checkpoint {checkpoint or 'none'}; {goes_on}")
    return found, "\n  ".join(lines)
