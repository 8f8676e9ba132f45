"""Words of annotations: keys in one spelling, triads of chords, times of beats, and JAMS files."""

import json
from pathlib import Path

NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_MODES = {"major": "major", "maj": "major", "minor": "minor", "min": "minor"}


def pitch_class(name: str) -> str | None:
    """`Eb` and `D#` are D#; None if it is no note."""
    name = name.strip().replace("♭", "b").replace("♯", "#")
    step = _STEPS.get(name[:1].upper())
    if step is None or set(name[1:]) - {"b", "#"}:
        return None
    return NOTES[(step + name.count("#") - name[1:].count("b")) % 12]


def key(text: str, path: Path) -> str:
    """One of 24, such as `D# minor`, of `Eb minor`, `Eb:minor` or `eb\\tmin`; ValueError naming the file."""
    words = text.replace(":", " ").split()
    note = pitch_class(words[0]) if words else None
    mode = _MODES.get(words[1].lower()) if len(words) > 1 else None
    if note is None or mode is None:
        raise ValueError(f"{path}: {text.strip()!r} is no key, expected one such as `Eb minor`")
    return f"{note} {mode}"


def triad(harte: str) -> str | None:
    """`Eb:hdim7/5` is D# minor, by its third; None for no chord and for chords without a third."""
    root, _, quality = harte.partition("/")[0].partition(":")
    note = pitch_class(root)
    if note is None or quality.startswith(("sus", "1", "5")):
        return None
    return f"{note} {'minor' if quality.startswith(('min', 'dim', 'hdim')) else 'major'}"


def beats(path: Path) -> str:
    """Seconds joined by spaces, of lines that begin with one; nothing where the file says that none are."""
    times = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            times.append(float(words[0]))
        except ValueError:
            wrong = f"{path} line {number} is {line.strip()!r}"
            raise ValueError(f"{wrong}: expected the time of a beat in seconds") from None
    return joined(times)


def joined(times: list[float]) -> str:
    """-1 alone stands for no beats (Ballroom)."""
    return " ".join(f"{time:.10g}" for time in sorted(times) if time >= 0)


def jams(path: Path) -> list[dict]:
    """Annotations of a JAMS file, each with `namespace` and its events in `data`; of version 0.2, which holds
    columns, as rows. ValueError naming a file that is none."""
    try:
        found = json.loads(path.read_text())["annotations"]
        return [annotation | {"data": _rows(annotation["data"])} for annotation in found]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no JAMS file: get it again") from None


def _rows(data: list | dict) -> list[dict]:
    if isinstance(data, list):
        return data
    return [dict(zip(data, event, strict=True)) for event in zip(*data.values(), strict=True)]
