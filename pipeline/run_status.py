"""`overtone status RUN`: where a training run stands, from what lies in its folder."""

import json
import time
from pathlib import Path
from typing import Any

from stages.pretrain.watch import duration, line


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


def text(found: dict[str, Any]) -> str:
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
