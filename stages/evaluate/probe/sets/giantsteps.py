"""Keys of electronic dance music: trained on GiantSteps MTG Key, tested on GiantSteps Key. The split is that
of JukeMIR (arXiv 2107.05677), which MARBLE uses: clear single keys (confidence 2), sides by artist."""

from collections.abc import Iterator
from pathlib import Path

from stages.evaluate.probe.sets import music
from stages.evaluate.probe.sets.folder import Folder, hashed, table, task
from stages.evaluate.probe.task import Item, Task

MTG = "expected the repository giantsteps-mtg-key-dataset of github.com/GiantSteps below it"
TEST = "expected the repository giantsteps-key-dataset of github.com/GiantSteps below it"
GET = "expected audio/10089.LOFI.mp3 and so on; each of the two repositories downloads its own by audio_dl.sh"


def read(path: Path) -> list[Task]:
    """giantsteps_key: train and valid of MTG Key, test of all 604 recordings of GiantSteps Key."""
    folder = Folder(path)
    keys = folder.named("annotations.txt", MTG, parent="annotations")
    artists = folder.named("beatport_metadata.txt", MTG, parent="annotations")
    rows = table(keys, ("ID", "MANUAL KEY", "C"), "\t")
    items = [*_train(keys, rows, _sides(artists)), *_test(folder, {row["ID"] for row in rows})]
    return [task(folder, "giantsteps_key", "key", items, GET)]


def _train(path: Path, rows: list[dict[str, str]], sides: dict[str, str]) -> Iterator[Item]:
    for row in rows:
        if row["C"] == "2" and "/" not in row["MANUAL KEY"]:
            name, key = f"{row['ID']}.LOFI", music.key(row["MANUAL KEY"], path)
            if row["ID"] not in sides:
                raise ValueError(
                    f"{path.with_name('beatport_metadata.txt')} has no recording {row['ID']}: {MTG}"
                )
            yield Item(name, None, None, name, sides[row["ID"]], key)


def _test(folder: Folder, others: set[str]) -> Iterator[Item]:
    """`annotations/giantsteps` holds .key files in another format; MTG Key has its own of the same name."""
    found = [
        folder.path / file for file in folder.files if file.suffix == ".key" and file.parent.name == "key"
    ]
    test = [file for file in found if file.stem.split(".")[0] not in others]
    if not test:
        raise ValueError(f"{folder.path} holds no annotations/key/10089.LOFI.key: {TEST}")
    for file in test:
        yield Item(file.stem, None, None, file.stem, "test", music.key(file.read_text(), file))


def _sides(path: Path) -> dict[str, str]:
    """Of an id. 16 of 116 artists, by the SHA-1 of the name, are valid, and with them whoever is connected by
    recordings made together: two rounds, in the order of the file, as JukeMIR does."""
    rows = [(r["ID"], _artists(r["ARTIST"])) for r in table(path, ("ID", "ARTIST"), "\t")]
    valid = {name for _, names in rows for name in names if hashed(name.lower(), 116) >= 100}
    for _ in range(2):
        for _, names in rows:
            if valid & set(names):
                valid |= set(names)
    return {number: "valid" if valid & set(names) else "train" for number, names in rows}


def _artists(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
