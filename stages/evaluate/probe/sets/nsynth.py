"""NSynth (arXiv 1704.01279): notes of 4 s by the official split, whose instruments of training are in no
other part."""

import json
from collections.abc import Iterator
from pathlib import Path

from stages.evaluate.probe.sets.folder import Folder, task
from stages.evaluate.probe.task import SIDES, Item, Task

GET = "expected nsynth-train, nsynth-valid and nsynth-test of magenta.tensorflow.org/nsynth, as JSON and WAV"


def read(path: Path) -> list[Task]:
    """nsynth_pitch (MIDI numbers; MARBLE counts 112 or 128 of them) and nsynth_instrument (11 families)."""
    folder = Folder(path)
    notes = [(side, name, note) for side in SIDES for name, note in _notes(folder, side)]

    def items(field: str) -> Iterator[Item]:
        for side, name, note in notes:
            yield Item(name, None, None, name, side, str(note[field]))

    return [
        task(folder, "nsynth_pitch", "class", items("pitch"), GET),
        task(folder, "nsynth_instrument", "class", items("instrument_family_str"), GET),
    ]


def _notes(folder: Folder, side: str) -> Iterator[tuple[str, dict]]:
    part = f"nsynth-{side}"
    path = folder.named("examples.json", GET, parent=part)
    if path.parent.name != part:
        raise ValueError(f"{folder.path} holds no {part}/examples.json: {GET}")
    try:
        notes = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is no JSON, or breaks off: get it again") from None
    for name, note in notes.items():
        if not isinstance(note, dict) or {"pitch", "instrument_family_str"} - note.keys():
            raise ValueError(f"{path}: {name} has no pitch or no instrument_family_str, get the file again")
        yield name, note
