"""Beats of recorded songs: eight songs of a game come with a MIDI file whose tempo map was laid by hand.

A song lies some milliseconds beside its map, throughout. How many is found here by where the onsets are, and
added to the beats; one song's map is half a beat off, and is mended too.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from examples.fetching.packages import finished
from examples.probes.sets import packages
from stages.evaluate.probe.task import Item

FOLDS = 4
RATE_HZ, HOP, WINDOW = 22050, 110, 512  # 5 ms
TRIED_S = np.arange(-0.1, 0.1, 0.005)
HALF_A_BEAT_OFF = {"Metal madness"}  # on its map there are no onsets; half a beat later they are all


def beats(root: Path) -> list[Item]:
    items, artists = [], {}
    for package in packages("songs"):
        for name in sorted(finished(root / "songs", package)["music"]):
            if name.endswith("song.ogg"):
                path, title = root / "songs" / package.name / name, Path(name).parent.name
                number = artists[package.name] = artists.get(package.name, -1) + 1
                times = " ".join(f"{t:.3f}" for t in beat_times(path))
                audio = f"songs/{package.name}/{name}"
                items.append(Item(audio, None, None, title, str(number % FOLDS), times))
    return items


def beat_times(path: Path) -> np.ndarray:
    """In seconds from the file's start; those of the map that the recording has."""
    wave_NC, rate = soundfile.read(path, always_2d=True)
    wave_N = soxr.resample(wave_NC.mean(1), rate, RATE_HZ)
    beats_B = mapped(path.with_name("notes.mid").read_bytes())
    if path.parent.name in HALF_A_BEAT_OFF:
        beats_B = beats_B + np.median(np.diff(beats_B)) / 2
    beats_B = beats_B + offset_s(wave_N, beats_B)
    return beats_B[(beats_B >= 0) & (beats_B < len(wave_N) / RATE_HZ)]


def offset_s(wave_N: np.ndarray, beats_B: np.ndarray) -> float:
    """How much later than `beats_B` the onsets lie: where their mean strength is greatest."""
    onset_T = onsets(wave_N)
    time_T = np.arange(len(onset_T)) * HOP / RATE_HZ
    heard_B = beats_B[beats_B < time_T[-1] - 0.1]
    strength = [np.interp(heard_B + shift, time_T, onset_T).mean() for shift in TRIED_S]
    return float(TRIED_S[np.argmax(strength)])


def onsets(wave_N: np.ndarray) -> np.ndarray:
    """Spectral flux; frame t belongs to sample t HOP: a window ends half a hop behind what is new in it."""
    padded = np.pad(wave_N, (WINDOW - HOP // 2, WINDOW))
    frame_TW = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    level_TF = np.log1p(100 * np.abs(np.fft.rfft(frame_TW * np.hanning(WINDOW), axis=1)))
    return np.maximum(np.diff(level_TF, axis=0, prepend=level_TF[:1]), 0).sum(1)


def mapped(midi: bytes) -> np.ndarray:
    """The times of all quarter notes, by the tempo map of a Standard MIDI File."""
    division = int.from_bytes(midi[12:14], "big")
    events = list(_tempi(midi))
    end = max(tick for tick, _ in events)
    tempi = sorted((tick, us) for tick, us in events if us)
    ticks = np.array([tick for tick, _ in tempi] + [end])
    us = np.array([value for _, value in tempi])
    start_s = np.concatenate([[0], np.cumsum(np.diff(ticks) * us / division / 1e6)])
    return np.interp(np.arange(0, end + 1, division), ticks, start_s)


def _tempi(midi: bytes) -> Iterator[tuple[int, int]]:
    """(tick, microseconds per quarter) of each tempo, and (tick, 0) for the end of each track."""
    place = 14
    while place < len(midi):
        stop = place + 8 + int.from_bytes(midi[place + 4 : place + 8], "big")
        place, tick, status = place + 8, 0, 0
        while place < stop:
            delta, place = _variable(midi, place)
            tick += delta
            if midi[place] == 0xFF:
                kind = midi[place + 1]
                length, place = _variable(midi, place + 2)
                if kind == 0x51:
                    yield tick, int.from_bytes(midi[place : place + length], "big")
                place += length
            elif midi[place] in (0xF0, 0xF7):
                length, place = _variable(midi, place + 1)
                place += length
            else:
                if midi[place] & 0x80:
                    status, place = midi[place], place + 1
                place += 1 if status >> 4 in (0xC, 0xD) else 2
        yield tick, 0


def _variable(midi: bytes, place: int) -> tuple[int, int]:
    value = 0
    while True:
        value, place = value << 7 | midi[place] & 0x7F, place + 1
        if not midi[place - 1] & 0x80:
            return value, place
