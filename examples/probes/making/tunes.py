"""Two tasks of rendered scores, key and chord: train, valid and test differ in tunes and in soundfonts.

Bach's chorales have four voices; tunes of O'Neill's book of 1850 get a bass and chords. Every score is moved
to another key, so that all are equally common, and played by other instruments at another speed.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from examples.probes import scores
from examples.probes.making.notes import PITCHES
from examples.probes.rendering import Render
from examples.probes.scores import Note
from stages.evaluate.probe.task import Item

SOUNDFONTS = {
    "train": "timgm6mb-soundfont",
    "valid": "csound-soundfont",
    "test": "fluidr3mono-gm-soundfont",
}
# General MIDI from 0, in tune and neither choirs nor effects
RINGING = (0, 1, 4, 6, 11, 24, 25, 46)
HELD = (16, 19, 20, 40, 41, 42, 48, 49, 60, 65, 68, 70, 71, 73, 74)
PER_KEY = {"train": 10, "valid": 2, "test": 5}
MORE_PER_KEY = 5  # for the test, from the other half of O'Neill's book
FROM_CHORALES = 120  # of each mode: the other half are O'Neill's, so that a mode is not a kind of music
CHORD_EXCERPTS = {"train": 200, "valid": 45, "test": 85}
KEY_S, CHORD_S = 20.0, 16.0
TRIADS = {
    frozenset((root + step) % 12 for step in steps): f"{PITCHES[root]}:{quality}"
    for quality, steps in {"maj": (0, 4, 7), "min": (0, 3, 7)}.items()
    for root in range(12)
}


@dataclass(frozen=True)
class Tune:
    score: str
    notes: list[Note]
    tonic: int | None  # None: the mode is neither major nor minor, or not sure
    mode: str
    bar: float = 0.0  # with this, it is to be accompanied
    upbeat: float = 0.0

    @property
    def end(self) -> float:
        return max(onset + length for onset, length, _, _ in self.notes)

    @property
    def melody(self) -> tuple[int, ...]:
        """The first steps of the highest voice: the same in every setting of a tune."""
        highest = [pitch for _, _, pitch, part in self.notes if part == 0][:13]
        return tuple(np.diff(highest).tolist())


def chorales() -> list[Tune]:
    """Of four voices; the key by its signature and the last bass note, where these agree."""
    found = []
    for path in sorted((scores.corpus_folder() / "bach").glob("*.mxl")):
        name = f"bach/{path.stem}"
        score = scores.parsed(f"{name}.mxl")
        if len(score.parts) != 4:
            continue
        notes = scores.notes(f"{name}.mxl")
        end = max(onset + length for onset, length, _, _ in notes)
        last = min(pitch for onset, length, pitch, _ in notes if onset + length > end - 0.01) % 12
        sharps = {key.sharps for key in score.flatten().getElementsByClass("KeySignature")}
        major = 7 * sharps.pop() % 12 if len(sharps) == 1 else None
        mode = "" if major is None else {major: "major", (major + 9) % 12: "minor"}.get(last, "")
        found.append(Tune(f"{name}.mxl", notes, last if mode else None, mode))
    return found


def dances(first_part: int) -> list[Tune]:
    """Of every second part of O'Neill's book from one on, those that end on their key's first degree."""
    found = []
    for path in sorted((scores.corpus_folder() / "oneills1850").glob("*.abc"))[first_part::2]:
        book = f"oneills1850/{path.name}"
        for score in getattr(scores.parsed(book), "scores", ()):  # one part holds a single tune
            name = f"{book}#{score.metadata.number}"
            keys = {(k.tonic.pitchClass, k.mode) for k in score.flatten().getElementsByClass("Key")}
            bars = {t.barDuration.quarterLength for t in score.flatten().getElementsByClass("TimeSignature")}
            if len(keys) != 1 or len(bars) != 1:
                continue
            (tonic, mode), bar = keys.pop(), float(bars.pop())
            notes = scores.notes(name)
            if mode in ("major", "minor") and len(notes) > 30 and notes[-1][2] % 12 == tonic:
                first = float(score.parts[0].getElementsByClass("Measure")[0].duration.quarterLength)
                found.append(Tune(name, notes, tonic, mode, bar, first if first < bar else 0.0))
    return found


def key() -> tuple[list[Item], list[Render]]:
    """One of 24 keys, of a tune's last 20 seconds."""
    rng = np.random.default_rng(0)
    wanted = {side: {mode: 12 * n for mode in ("major", "minor")} for side, n in PER_KEY.items()}
    chosen, seen = [], Counter()
    side_of: dict[tuple, str] = {}
    sacred, worldly = (_shuffled([t for t in pool if t.mode], rng) for pool in (chorales(), dances(0)))
    for tune in [*sacred, *worldly]:
        if not tune.bar and seen[tune.mode] >= FROM_CHORALES:
            continue
        side = side_of.setdefault(
            tune.melody, max(wanted, key=lambda s: wanted[s][tune.mode] / (12 * PER_KEY[s]))
        )
        if wanted[side][tune.mode]:
            wanted[side][tune.mode] -= 1
            seen[tune.mode] += 1
            chosen.append((tune, side))
    if any(n for left in wanted.values() for n in left.values()):
        raise ValueError(f"too few tunes: {wanted} are missing")
    items, renders, placed = [], [], Counter()
    for tune, side in [*_shuffled(chosen, rng), *_more(side_of)]:
        target = placed[side, tune.mode] % 12
        placed[side, tune.mode] += 1
        qpm = float(rng.integers(66, 97) if not tune.bar else rng.integers(90, 131))
        start = float(max(0, np.floor(tune.end - KEY_S * qpm / 60)))
        audio = f"tunes/{_stem(tune.score)}.flac"
        shift = (target - tune.tonic + 6) % 12 - 6
        accompanied = (tune.tonic, tune.mode, tune.bar, tune.upbeat) if tune.bar else (None, "", 0.0, 0.0)
        voices = _programs(rng, 3 if tune.bar else 4)
        renders.append(
            Render(audio, tune.score, start, tune.end, shift, qpm, SOUNDFONTS[side], voices, *accompanied)
        )
        items.append(Item(audio, None, None, _group(tune), side, f"{PITCHES[target]} {tune.mode}"))
    return _sorted(items), _sorted(renders)


def _more(side_of: dict[tuple, str]) -> list[tuple[Tune, str]]:
    """Further tunes for the test, as many in each mode; melodies of training and validation are left out."""
    left, chosen = {mode: 12 * MORE_PER_KEY for mode in ("major", "minor")}, []
    for tune in _shuffled(dances(1), np.random.default_rng(2)):
        if left[tune.mode] and side_of.get(tune.melody, "test") == "test":
            left[tune.mode] -= 1
            chosen.append((tune, "test"))
    if any(left.values()):
        raise ValueError(f"too few tunes: {left} are missing")
    return chosen


def chord() -> tuple[list[Item], list[Render]]:
    """One of 24 triads: the beats of a chorale on which nothing but its three notes is heard."""
    rng = np.random.default_rng(1)
    left, side_of, items, renders = dict(CHORD_EXCERPTS), {}, [], []
    held = {side: Counter() for side in left}
    for tune in _shuffled(chorales(), rng):
        side = side_of.setdefault(tune.melody, max(left, key=lambda s: left[s] / CHORD_EXCERPTS[s]))
        qpm = float(rng.integers(60, 81))
        quarters = np.floor(CHORD_S * qpm / 60)
        start = float(rng.integers(0, max(1, int(tune.end - quarters) + 1)))
        end = min(start + quarters, tune.end)
        spans = triads(scores.excerpt(tune.notes, start, end))
        voices = _programs(rng, 4)
        if not left[side] or not spans:
            continue
        left[side] -= 1

        def crowd(shift: int, spans=spans, counts=held[side]) -> int:
            return sum(counts[_moved(name, shift)] for _, _, name in spans)

        shift = min(rng.permutation(np.arange(-6, 6)).tolist(), key=crowd)
        audio = f"chorales/{_stem(tune.score)}.flac"
        renders.append(Render(audio, tune.score, start, end, shift, qpm, SOUNDFONTS[side], voices))
        for first, last, name in spans:
            target = _moved(name, shift)
            held[side][target] += 1
            times = (round(first * 60 / qpm, 3), round(last * 60 / qpm, 3))
            items.append(Item(audio, *times, _group(tune), side, target))
    if any(left.values()):
        raise ValueError(f"too few chorales: {left} are missing")
    return _sorted(items), _sorted(renders)


def triads(notes: list[Note]) -> list[tuple[int, int, str]]:
    """(first quarter, last quarter, name) of the spans of whole quarters that are one triad."""
    spans: list[tuple[int, int, str]] = []
    for beat in range(int(max(onset + length for onset, length, _, _ in notes))):
        heard = frozenset(pitch % 12 for _, _, pitch, _ in scores.excerpt(notes, beat, beat + 1))
        name = TRIADS.get(heard)
        if name and spans and spans[-1][1:] == (beat, name):
            spans[-1] = (spans[-1][0], beat + 1, name)
        elif name:
            spans.append((beat, beat + 1, name))
    return spans


def _moved(name: str, semitones: int) -> str:
    root, _, quality = name.partition(":")
    return f"{PITCHES[(PITCHES.index(root) + semitones) % 12]}:{quality}"


def _programs(rng: np.random.Generator, voices: int) -> tuple[int, ...]:
    """One instrument for all, or one for each voice, by the toss of a coin."""
    pool = RINGING + HELD if rng.random() < 0.5 else HELD
    if rng.random() < 0.5:
        return (int(rng.choice(pool)),) * voices
    return tuple(rng.choice(pool, voices).tolist())


def _group(tune: Tune) -> str:
    """Its melody's name: all settings of it stay together."""
    return "melody " + hashlib.sha256(repr(tune.melody).encode()).hexdigest()[:8]


def _stem(score: str) -> str:
    folder, _, name = score.partition("/")
    return f"{folder}-{name}".replace(".mxl", "").replace(".abc#", "-")


def _shuffled(things: list, rng: np.random.Generator) -> list:
    return [things[i] for i in rng.permutation(len(things))]


def _sorted(found: list) -> list:
    return sorted(found, key=lambda one: (one.audio, getattr(one, "start_s", None) or 0))
