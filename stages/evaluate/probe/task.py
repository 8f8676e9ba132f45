"""A probe's task: items of audio with a target, a group and a side of the split. Read from CSV files:

    audio,start_s,end_s,group,fold,target
    notes/violin/A4.mp3,,,violin,3,A

`audio` is a path below the task's folder of audio; empty times: the whole file. The encoder hears the file,
or 30 s of it around the item, and the frames of [start_s, end_s) are the item's. Items of one `group` (a
recording, an artist, a soundfont's tune) stay on one side. `fold`: a number (each fold is tested once, the
next one is for validation), or train, valid, test.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.config import require

# class: one name | key: one of 24, e.g. `C# minor` | tags: names joined by `|`
# numbers: figures joined by spaces | beats: times in seconds from the file's start, joined by spaces
Kind = Literal["class", "key", "tags", "numbers", "beats"]
SIDES = ("train", "valid", "test")
FIELDS = ("audio", "start_s", "end_s", "group", "fold", "target")


@dataclass(frozen=True)
class Item:
    audio: str
    start_s: float | None
    end_s: float | None
    group: str
    fold: str
    target: str


@dataclass(frozen=True)
class Task:
    name: str
    kind: Kind
    items: tuple[Item, ...]
    root: Path  # of `audio`
    note: str = ""  # what a reader of the result must know, such as how many recordings are missing
    names: tuple[str, ...] = ()  # of the numbers

    def __post_init__(self):
        folds = {item.fold for item in self.items}
        split = folds == set(SIDES)
        numbered = len(folds) > 2 and all(fold.isdigit() for fold in folds)
        remedy = "expected train, valid and test, or three or more numbered folds"
        require(split or numbered, f"task {self.name}: fold", sorted(folds), remedy)
        sides: dict[str, str] = {}
        for item in self.items:
            other = sides.setdefault(item.group, item.fold)
            apart = f"the group is in fold {other} too: a group stays on one side"
            require(other == item.fold, f"task {self.name}: {item.group}", item.fold, apart)

    def runs(self) -> list[tuple[set[str], set[str], set[str]]]:
        """Folds of (train, valid, test), one run after the other."""
        folds = sorted({item.fold for item in self.items}, key=lambda fold: (len(fold), fold))
        if set(folds) == set(SIDES):
            return [({"train"}, {"valid"}, {"test"})]
        after = dict(zip(folds, [*folds[1:], folds[0]], strict=True))
        return [(set(folds) - {fold, after[fold]}, {after[fold]}, {fold}) for fold in folds]


def read(path: Path, kind: Kind, root: Path) -> Task:
    """ValueError naming the line that is wrong."""
    with open(path, newline="") as file:
        items = tuple(_items(path, csv.DictReader(file)))
    return Task(path.stem, kind, items, root)


def _items(path: Path, rows: Iterable[dict[str, str]]) -> Iterable[Item]:
    for number, row in enumerate(rows, 2):
        whole = set(row) == set(FIELDS) and None not in row.values()
        require(whole, f"{path} line {number}", list(row.values()), f"expected {', '.join(FIELDS)}")
        try:
            start_s, end_s = (float(row[name]) if row[name] else None for name in ("start_s", "end_s"))
        except ValueError:
            raise ValueError(f"{path} line {number}: start_s and end_s must be seconds or empty") from None
        yield Item(row["audio"], start_s, end_s, row["group"], row["fold"], row["target"])


def write(path: Path, items: Iterable[Item]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for item in items:
            times = ("" if t is None else f"{t:g}" for t in (item.start_s, item.end_s))
            writer.writerow([item.audio, *times, item.group, item.fold, item.target])
