"""The folder of a public set, walked once, and a task of those recordings of the split that lie in it."""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from stages.config import require
from stages.evaluate.probe.task import Item, Kind, Task

AUDIO = (".wav", ".flac", ".au", ".mp3", ".ogg", ".m4a")  # of a name in several formats, the first is taken


class Folder:
    """Files at any depth, links followed once; what the system hides (a name that begins with a dot) is not
    seen. ValueError where there is no folder."""

    def __init__(self, path: Path):
        require(path.is_dir(), "the set's folder", str(path), "expected an existing folder")
        self.path = path
        self.files = sorted(_walk(path))  # relative to `path`

    @cached_property
    def audio(self) -> dict[str, str]:
        """A recording's name without its format, and its path below the folder. Empty files count as
        missing: downloads that broke off, and three clips of MagnaTagATune."""
        found: dict[str, str] = {}
        by_format = sorted(self.files, key=lambda file: (_rank(file), file))
        for file in by_format:
            if _rank(file) < len(AUDIO) and file.stem not in found and (self.path / file).stat().st_size:
                found[file.stem] = file.as_posix()
        return found

    def named(self, name: str, get: str, parent: str | None = None) -> Path:
        """The first file of this name; below a folder called `parent`, if there is such a one."""
        found = [file for file in self.files if file.name == name]
        found.sort(key=lambda file: file.parent.name != parent)
        if not found:
            raise ValueError(f"{self.path} holds no {name}: {get}")
        return self.path / found[0]

    def ending(self, suffix: str) -> dict[str, Path]:
        """A file's name without `suffix`, and its path."""
        return {
            file.name.removesuffix(suffix): self.path / file for file in self.files if file.suffix == suffix
        }


def task(folder: Folder, name: str, kind: Kind, split: Iterable[Item], get: str, note: str = "") -> Task:
    """`split`: all items, where `audio` is a recording's name without its format. Those without audio are
    left out and counted in the task's note; ValueError if that empties a side of the split."""
    split, found = tuple(split), folder.audio
    missing = sorted({item.audio for item in split} - found.keys())
    items = tuple(replace(item, audio=found[item.audio]) for item in split if item.audio in found)
    empty = {item.fold for item in split} - {item.fold for item in items}
    if empty or not items:
        where = f"of {' and '.join(sorted(empty))} " if empty and items else ""
        raise ValueError(f"{name}: no audio {where}lies below {folder.path}: {get}")
    counted = lacking(missing, len({item.audio for item in split}), "without audio")
    return Task(name, kind, items, folder.path, "; ".join(filter(None, (counted, note))))


def lacking(names: Sequence[str], of: int, what: str) -> str:
    """For a note: `2 of 290 recordings without audio, for example blues.00012`, or nothing."""
    return f"{len(names)} of {of} recordings {what}, for example {names[0]}" if names else ""


def table(path: Path, columns: Sequence[str], delimiter: str = ",") -> list[dict[str, str]]:
    """Rows by column, without spaces around; ValueError naming columns that are not there."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file, delimiter=delimiter)
        head = [name.strip() for name in next(reader, [])]
        absent = [name for name in columns if name not in head]
        if absent:
            raise ValueError(f"{path} has no column {absent[0]!r}: expected the file as it was published")
        rows = [dict(zip(head, (cell.strip() for cell in row), strict=False)) for row in reader if row]
    for count, row in enumerate(rows, 2):
        require(set(columns) <= row.keys(), f"{path} row {count}", list(row.values()), "a column is missing")
    return rows


def number(text: str, path: Path, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: {what} is {text!r}, expected a number") from None


def hashed(text: str, parts: int) -> int:
    """A number below `parts` that depends on the text alone, so that a missing file moves no other."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % parts


def _rank(file: Path) -> int:
    suffix = file.suffix.lower()
    return AUDIO.index(suffix) if suffix in AUDIO else len(AUDIO)


def _walk(path: Path) -> Iterable[Path]:
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        below = Path(folder).relative_to(path)
        yield from (below / name for name in files if not name.startswith("."))
