"""Tunes and chorales as audio: renders.csv says which score, key, speed, instruments and soundfont.

One FLAC of 24 kHz, mono, 16 bits a line, with the same bytes on every run: a file appears whole, those that
are there are left alone, and when renders.csv has changed all are made anew.
"""

import csv
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import soundfile
import soxr

from examples.fetching.packages import finished
from examples.probes import scores
from examples.probes.scores import Note
from examples.probes.sets import HERE, packages

RATE_HZ, PLAYED_HZ = 24000, 48000
VELOCITY, TAIL_S, PEAK = 90, 0.5, 0.6
PLAN = HERE / "renders.csv"
MARKER = "renders.sha256"


@dataclass(frozen=True)
class Render:
    """`start` and `end` in quarters of the score; `programs` of General MIDI from the highest part on."""

    audio: str
    score: str
    start: float
    end: float
    semitones: int
    qpm: float
    soundfont: str
    programs: tuple[int, ...]
    tonic: int | None = None  # of the score, for what it takes to accompany it
    mode: str = ""
    bar: float = 0.0
    upbeat: float = 0.0

    def notes(self) -> list[Note]:
        found = scores.notes(self.score)
        if self.tonic is not None:
            found = scores.accompanied(found, self.tonic, self.mode, self.bar, self.upbeat)
        return scores.excerpt(found, self.start, self.end)


def plan(folder: str, path: Path = PLAN) -> list[Render]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["audio"].startswith(f"{folder}/")]
    return [
        Render(
            **{name: row[name] for name in ("audio", "score", "soundfont", "mode")},
            **{name: float(row[name]) for name in ("start", "end", "qpm", "bar", "upbeat")},
            semitones=int(row["semitones"]),
            programs=tuple(map(int, row["programs"].split())),
            tonic=int(row["tonic"]) if row["tonic"] else None,
        )
        for row in rows
    ]


def save(renders: list[Render], path: Path = PLAN) -> None:
    names = [field.name for field in fields(Render)]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for job in renders:
            values = {**asdict(job), "programs": " ".join(map(str, job.programs))}
            writer.writerow([f"{v:g}" if isinstance(v, float) else v for v in values.values()])


class Player:
    """Plays notes with one soundfont."""

    def __init__(self, path: Path):
        try:
            import tinysoundfont
        except ImportError:
            raise ValueError("tinysoundfont is not installed: run make probe-sets") from None
        self.synth = tinysoundfont.Synth(samplerate=PLAYED_HZ)
        self.font = self.synth.sfload(path.read_bytes())

    def play(self, notes: list[Note], semitones: int, qpm: float, programs: tuple[int, ...]) -> np.ndarray:
        """Mono, float, at RATE_HZ; the last program plays all further parts."""
        second, events = 60 / qpm, []
        for onset, length, pitch, part in notes:
            channel = min(part, len(programs) - 1)
            on, off = (round(t * second * PLAYED_HZ) for t in (onset, onset + length))
            # a note ends just before it is struck again
            events += [
                (on, 1, channel, pitch + semitones),
                (max(off - 96, on + 1), 0, channel, pitch + semitones),
            ]
        for channel, program in enumerate(programs):
            self.synth.program_select(channel, self.font, 0, program)
        parts, now = [], 0
        for at, struck, channel, pitch in sorted(events):
            parts.append(self._next(at - now))
            now = at
            if struck:
                self.synth.noteon(channel, pitch, VELOCITY)
            else:
                self.synth.noteoff(channel, pitch)
        end = max(onset + length for onset, length, _, _ in notes) * second
        parts.append(self._next(round((end + TAIL_S) * PLAYED_HZ) - now))
        self._hush(len(programs))
        return soxr.resample(np.concatenate(parts), PLAYED_HZ, RATE_HZ)

    def _next(self, samples: int) -> np.ndarray:
        if samples <= 0:
            return np.zeros(0, np.float32)
        heard = np.frombuffer(self.synth.generate(samples), np.float32)
        return heard.reshape(-1, 2).mean(1)

    def _hush(self, channels: int) -> None:
        """Nothing of this piece is heard in the next."""
        for channel in range(channels):
            self.synth.sounds_off(channel)
        self._next(PLAYED_HZ)


def render(root: Path, folder: str, say: Callable[[str], None] = print, path: Path = PLAN) -> None:
    """What the plan says lies in `folder`, with root/soundfonts; ValueError without music21 or a renderer."""
    scores.need_music21()
    wanted = plan(folder, path)
    text = "\n".join(map(repr, wanted)).encode()
    _mark(root / folder, hashlib.sha256(text).hexdigest())
    left = [job for job in wanted if not (root / job.audio).is_file()]
    said = time.monotonic()
    say(f"{len(wanted)} files, {len(left)} to render")
    for font in sorted({job.soundfont for job in left}):
        player = Player(soundfont(root, font))
        for job in (job for job in left if job.soundfont == font):
            _save(root / job.audio, player.play(job.notes(), job.semitones, job.qpm, job.programs))
            if time.monotonic() - said > 5:
                said = time.monotonic()
                have = sum((root / job.audio).is_file() for job in wanted)
                say(f"    {have} of {len(wanted)} files")


def soundfont(root: Path, package: str) -> Path:
    pinned = next(p for p in packages("soundfonts") if p.name == package)
    name = max(finished(root / "soundfonts", pinned, any_version=True)["files"], key=lambda n: ".sf" in n)
    return root / "soundfonts" / package / name


def _mark(folder: Path, plan_sha256: str) -> None:
    """An emptied folder if it was made by another plan."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    if not marker.is_file() or marker.read_text() != plan_sha256:
        for old in folder.glob("*.flac"):
            old.unlink()
        marker.write_text(plan_sha256)


def _save(path: Path, wave_N: np.ndarray) -> None:
    peak = np.abs(wave_N).max()
    attempt = path.with_name(f".{path.stem}.attempt")
    soundfile.write(attempt, wave_N * (PEAK / peak), RATE_HZ, format="FLAC", subtype="PCM_16")
    os.replace(attempt, path)
