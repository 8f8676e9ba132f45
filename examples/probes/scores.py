"""Scores of music21's corpus as plain notes, and an accompaniment for tunes of one voice.

A note is (onset, length, pitch, part): in quarters from the score's start, MIDI number, 0 the highest part.
"""

from functools import cache
from pathlib import Path

MUSIC21 = "10.5.1"
Note = tuple[float, float, int, int]
TRIADS = {"major": ((0, 4, 7), (5, 9, 0), (7, 11, 2)), "minor": ((0, 3, 7), (5, 8, 0), (7, 11, 2))}


def need_music21() -> None:
    """ValueError with the remedy if the corpus is not that of the task files."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        seen = version("music21")
    except PackageNotFoundError:
        seen = "none"
    if seen != MUSIC21:
        raise ValueError(
            f"music21: {seen} is installed, tunes and chorales are of {MUSIC21}: run make probe-sets, or "
            "leave them out (--task pitch instrument beats drum composer)"
        )


@cache
def parsed(name: str):
    """`bach/bwv66.6`, or one tune of a book: `oneills1850/0001-0050.abc#12`."""
    from music21 import corpus

    path, _, number = name.partition("#")
    return corpus.parse(path, number=int(number)) if number else corpus.parse(path)


def notes(name: str) -> list[Note]:
    """Sorted; tied notes are one, chord symbols and grace notes are not played, repeats neither."""
    found = []
    score = parsed(name)
    for part, stream in enumerate(score.parts):
        for element in stream.stripTies().flatten().notes:
            length = float(element.duration.quarterLength)
            if length > 0 and "ChordSymbol" not in element.classes:
                for pitch in element.pitches:
                    found.append((float(element.offset), length, int(pitch.midi), part))
    return sorted(found)


def excerpt(found: list[Note], start: float, end: float) -> list[Note]:
    """What sounds between two quarters, from 0 on."""
    return [
        (max(onset, start) - start, min(onset + length, end) - max(onset, start), pitch, part)
        for onset, length, pitch, part in found
        if onset < end and onset + length > start
    ]


def accompanied(tune: list[Note], tonic: int, mode: str, bar: float, upbeat: float = 0) -> list[Note]:
    """With a bass and a chord in every bar: that of the first, fourth and fifth degree which shares most of
    the melody's time with it; in the last bar the first."""
    end = max(onset + length for onset, length, _, _ in tune)
    starts = [upbeat + bar * i for i in range(int((end - upbeat) / bar + 0.999))]
    added = []
    for start in starts:
        held = [0.0] * 12
        for _, length, pitch, _ in excerpt(tune, start, start + bar):
            held[(pitch - tonic) % 12] += length
        triads = TRIADS[mode][:1] if start == starts[-1] else TRIADS[mode]
        triad = max(triads, key=lambda chord: sum(held[degree] for degree in chord))
        root = 36 + (tonic + triad[0]) % 12
        added.append((start, bar / 2, root, 2))
        for degree in triad:
            added.append((start + bar / 2, bar / 2, 53 + (tonic + degree - 53) % 12, 1))
    return sorted([*tune, *added])


def corpus_folder() -> Path:
    import music21

    return Path(music21.__file__).parent / "corpus"
