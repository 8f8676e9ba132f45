"""Two tasks of recorded notes, which an npm package per instrument carries: the file's name is the note."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from examples.fetching.packages import finished
from examples.probes.making.folds import spread
from examples.probes.sets import packages
from stages.evaluate.probe.task import Item

PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
HEARD_S = 3.0  # a note's attack and its body; what rings on is left out
FOLDS = 5
REGISTERS = 5  # of an instrument: its notes by height, in five parts
MOST = 20  # notes of an instrument in the task of instruments; a piano has 85, a xylophone 8
# The sum of the harmonics, in steps of 5 cents: B4, 55 cents flat, F6, D#5. All others are within 15 cents.
MISNAMED = {("cello", "As4"), ("cello", "E2"), ("clarinet", "Fs6"), ("guitar-nylon", "D5")}


def notes(root: Path) -> list[tuple[str, str, int, str, float]]:
    """(instrument, file's stem, MIDI number, path, seconds) of every note."""
    found = []
    for package in packages("notes"):
        instrument = package.name.removeprefix("tonejs-instrument-").removesuffix("-mp3")
        for name, about in sorted(finished(root / "notes", package)["music"].items()):
            stem = Path(name).stem
            written = stem.split()[0].replace("s", "#")  # `F2 v2` is a second F2
            number = 12 * (int(written[-1]) + 1) + PITCHES.index(written[:-1])
            found.append((instrument, stem, number, f"notes/{package.name}/{name}", about["seconds"]))
    return found


def pitch(root: Path) -> list[Item]:
    """Pitch class of instruments that were not heard before."""
    kept = [note for note in notes(root) if note[:2] not in MISNAMED]
    groups = defaultdict(Counter)
    for instrument, _, number, _, _ in kept:
        groups[instrument][PITCHES[number % 12]] += 1
    fold = spread(groups, FOLDS)
    return [
        Item(path, 0.0, min(seconds, HEARD_S), instrument, fold[instrument], PITCHES[number % 12])
        for instrument, _, number, path, seconds in kept
    ]


def instrument(root: Path) -> list[Item]:
    """The instrument, in a register in which it was not heard before: fold by fold another one of each."""
    by_name, items = defaultdict(list), []
    for note in notes(root):
        by_name[note[0]].append(note)
    rng = np.random.default_rng(0)
    for name, own in sorted(by_name.items()):
        own.sort(key=lambda note: (note[2], note[1]))
        if len(own) > MOST:
            own = [own[i] for i in np.linspace(0, len(own) - 1, MOST).round().astype(int)]
        fold_R = rng.permutation(REGISTERS)  # so that a fold is not the low or the high one
        for i, (_, _, _, path, seconds) in enumerate(own):
            register = i * REGISTERS // len(own)
            group, fold = f"{name} {register + 1}", str(fold_R[register])
            items.append(Item(path, 0.0, min(seconds, HEARD_S), group, fold, name))
    return items
