"""A file's sound as the encoders hear it, by the decoder that labels have."""

import os

import numpy as np

from stages.label.decoding.process import DecoderProcess
from stages.label.decoding.source import Source, quick_hash
from stages.signal.rates import RATE_HZ

REQUEST = {"rate_hz": RATE_HZ, "resampler": "HQ", "max_s": 12 * 3600.0}


def wave(decoder: DecoderProcess, path: str, quick: str | None = None) -> np.ndarray:
    """float32 mono samples at 24 kHz, full scale ±1. `quick`: its `quick_hash`, if it is known. Raises
    RejectRecording, ReadError and OSError."""
    about, encoded = os.stat(path), os.fsencode(path)
    source = Source(path, encoded, about.st_size, about.st_mtime_ns, quick or quick_hash(path))
    parts = decoder.decode(source, encoded, REQUEST, {})
    return np.concatenate([np.zeros(0, np.int16), *parts]).astype(np.float32) / 32768
