"""Tiny folders in the layouts of public sets."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from stages.evaluate.probe.task import Task


def audio(root: Path, *names: str) -> None:
    """A tenth of a second of silence each, as WAV whatever the name: readers look at names and sizes."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            soundfile.write(file, np.zeros(2400), 24_000, format="WAV")


def text(root: Path, name: str, content: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def lines(*rows: Iterable[str], delimiter: str = "\t") -> str:
    return "".join(delimiter.join(row) + "\n" for row in rows)


def sides(task: Task) -> dict[str, str]:
    """Of each recording's path. Nothing is twice, and all of it is there to be read."""
    found = {item.audio: item.fold for item in task.items}
    assert len(found) == len(task.items) and all((task.root / name).is_file() for name in found)
    return found


def targets(task: Task) -> dict[str, str]:
    return {Path(item.audio).name.split(".wav")[0].split(".mp3")[0]: item.target for item in task.items}
