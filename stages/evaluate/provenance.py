"""Where a run's recordings came from, by the catalogues of its corpora, and licences found beside them."""

import contextlib
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stages.evaluate.run import TrainedRun
from stages.shards import catalog
from stages.shards.names import printable
from stages.shards.storage import Storage

LISTED = 40  # sources; the rest are summed
NOT_STATED = "not stated"
LICENCE_FILES = ("license", "licence", "copying", "copyright")  # beginnings of their names


def data_statement(run: TrainedRun) -> str:
    """Hours, recordings, and a table of sources: the folders right below each audio root."""
    data = run.data
    counts = data.get("recordings", {})
    parts = [
        f"{hours:.2f} hours {what}" + (f" ({counts[split]} recordings)" if split in counts else "")
        for what, split, hours in (
            ("for training", "train", data.get("hours")),
            ("held out", "valid", data.get("valid_hours")),
        )
        if hours is not None
    ]
    rows, lost = [], []
    for place, shards in zip(
        run.config.get("data", {}).get("corpora", ()), data.get("shards", ()), strict=False
    ):
        try:
            rows += _sources(Storage(place), shards)
        except (OSError, ValueError):
            lost.append(f"The catalogue of `{place}` could not be read when this card was written.")
    if rows:
        table = [
            f"| {name} | {count} | {hours:.2f} | {licence} |" for name, count, hours, licence in _listed(rows)
        ]
        lost.append(
            "Licences are read from what lies beside the audio (a `package.json`, a licence file); the "
            "catalogue itself has none."
        )
        lost.append("\n".join(["| source | recordings | hours | licence |", "|---|---|---|---|", *table]))
    return "\n\n".join([f"{', '.join(parts)}.", *lost] if parts else lost)


def _listed(rows: list[tuple]) -> list[tuple]:
    rows = sorted(rows, key=lambda row: (-row[2], row[0]))
    rest = rows[LISTED:]
    summed = (f"{len(rest)} more", sum(r[1] for r in rest), sum(r[2] for r in rest), "see their folders")
    return rows[:LISTED] + ([summed] if rest else [])


def _sources(storage: Storage, shards: list[str]) -> list[tuple[str, int, float, str]]:
    """(source, recordings, hours before decoding, licence) of the pinned shards."""
    with storage.fetched("plan.parquet") as path:
        plan = catalog.live(catalog.read_plan(path))
    plan = plan.filter(pc.is_in(plan["shard"], pa.array(shards, pa.string())))
    with storage.fetched("catalog.parquet") as path:
        found = catalog.read_catalog(path, ["recording", "status", "root", "name_bytes"])
    found = found.filter(pc.equal(found["status"], "kept"))
    names = {row["recording"]: (row["root"], row["name_bytes"]) for row in found.to_pylist()}
    count, seconds = Counter(), Counter()
    for recording, long_s in zip(plan["recording"].to_pylist(), catalog.likely_seconds(plan), strict=True):
        root, name = names.get(recording, ("", b""))
        source = root, os.fsdecode(name).split("/")[0] if b"/" in name else ""
        count[source] += 1
        seconds[source] += float(long_s)
    return [
        (
            printable(top or Path(root).name or "unknown"),
            count[root, top],
            seconds[root, top] / 3600,
            licence(root, top),
        )
        for root, top in count
    ]


def licence(root: str, top: str) -> str:
    """Of a source's folder, else of the root: the word of a package.json, or which file to read."""
    for folder in (Path(root, top), Path(root)) if top else (Path(root),):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads((folder / "package.json").read_text())["licence"])
        names = sorted(os.listdir(folder)) if folder.is_dir() else ()
        if files := [name for name in names if name.lower().startswith(LICENCE_FILES)]:
            return f"see {', '.join(map(printable, files))}"
    return NOT_STATED
