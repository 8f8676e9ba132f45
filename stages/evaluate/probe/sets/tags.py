"""Tagging with the 50 most frequent tags: MagnaTagATune and MTG-Jamendo."""

from collections.abc import Iterator
from pathlib import Path

from stages.evaluate.probe.sets.folder import Folder, number, table, task
from stages.evaluate.probe.task import Item, Task

MTT = "expected annotations_final.csv and the folders 0 to f of mp3.zip (mirg.city.ac.uk, MagnaTagATune)"
JAMENDO = "expected data/splits/split-0 of github.com/MTG/mtg-jamendo-dataset below it"
GET = "expected 48/948.mp3 or 48/948.low.mp3 and so on, which that repository's scripts/download gets"
TOP, CLIP_S = 50, 30.0
_SIDES = {"train": "train", "valid": "validation", "test": "test"}


def magnatagatune(path: Path) -> list[Task]:
    """mtt_tags: folders 0 to b for training, c for validation, d to f for the test (12 : 1 : 3). As in
    MARBLE, clips with none of the 50 tags stay: their target is empty."""
    folder = Folder(path)
    file = folder.named("annotations_final.csv", MTT)
    rows = table(file, ("clip_id", "mp3_path"), "\t")
    names = [name for name in (rows[0] if rows else {}) if name not in ("clip_id", "mp3_path")]
    counts = {name: sum(row.get(name) == "1" for row in rows) for name in names}
    top = set(sorted(names, key=lambda name: -counts[name])[:TOP])
    items = (
        _clip(file, row, [name for name in names if name in top and row.get(name) == "1"]) for row in rows
    )
    return [task(folder, "mtt_tags", "tags", items, MTT)]


def _clip(file: Path, row: dict[str, str], tags: list[str]) -> Item:
    folder, _, name = row["mp3_path"].partition("/")
    if len(folder) != 1 or folder not in "0123456789abcdef":
        raise ValueError(f"{file}: mp3_path is {row['mp3_path']!r}, expected one that begins with 0/ to f/")
    side = "train" if folder in "0123456789ab" else "valid" if folder == "c" else "test"
    stem = name.removesuffix(".mp3")
    return Item(stem, None, None, stem, side, "|".join(tags))


def jamendo(path: Path) -> list[Task]:
    """mtg_top50: split 0, whose sides share no artist. Of each recording its middle 30 s, by the length that
    the split's file gives."""
    folder = Folder(path)
    audio = folder.audio
    items = [item for side in _SIDES for item in _recordings(folder, side, audio)]
    return [task(folder, "mtg_top50", "tags", items, GET)]


def _recordings(folder: Folder, side: str, audio: dict[str, str]) -> Iterator[Item]:
    """Lines of `track artist album path duration tag tag …`: more cells than the head has names."""
    file = folder.named(f"autotagging_top50tags-{_SIDES[side]}.tsv", JAMENDO, parent="split-0")
    if file.parent.name != "split-0" and file.parent.name.startswith("split-"):
        raise ValueError(f"{file} is of another split: {JAMENDO}")
    for count, line in enumerate(file.read_text().splitlines()[1:], 2):
        cells = line.rstrip().split("\t")
        if len(cells) < 6:
            raise ValueError(f"{file} line {count} has {len(cells)} columns, expected 6 or more: {JAMENDO}")
        stem = Path(cells[3]).stem
        low = f"{stem}.low"
        start_s = max(0.0, (number(cells[4], file, f"the duration of line {count}") - CLIP_S) / 2)
        yield Item(
            low if low in audio else stem,
            round(start_s, 2),
            round(start_s + CLIP_S, 2),
            cells[1],
            side,
            "|".join(cells[5:]),
        )
