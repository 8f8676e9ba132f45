"""Pieces of the quickstart's music as teachers hear it, and a `Wave` in memory."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

MUSIC = Path(__file__).resolve().parents[1] / "examples" / "quickstart"
PIECES = sorted(MUSIC.glob("*.ogg"))
RATE_HZ = 24_000


@cache
def excerpt(number: int = 0, start_s: float = 10.0, length_s: float = 20.0) -> np.ndarray:
    """float32 (length_s · 24000,), mono, read-only, of piece `number` in the order of names."""
    rate_hz = soundfile.info(PIECES[number]).samplerate
    frames, start = round(length_s * rate_hz), round(start_s * rate_hz)
    sound, _ = soundfile.read(PIECES[number], frames=frames, start=start, dtype="float32", always_2d=True)
    wave_N = soxr.resample(sound.mean(1), rate_hz, RATE_HZ).astype(np.float32)
    wave_N.flags.writeable = False
    return wave_N


@dataclass
class ArrayWave:
    """The protocol `stages.label.base.Wave`, of any dtype and shape, for what teachers refuse is tested
    too."""

    sound: np.ndarray

    @property
    def samples(self) -> int:
        return len(self.sound)

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.zeros((stop - start, *self.sound.shape[1:]), self.sound.dtype)
        low, high = max(start, 0), min(stop, self.samples)
        if high > low:
            out[low - start : high - start] = self.sound[low:high]
        return out
