"""Chroma: which of the twelve pitch classes sound, octaves folded together.

The weights are our choice (D): Gaussians of half a semitone about each class, as after a Hann window of 4,096
samples at 24 kHz, under a taper that favours the octaves where notes can be told apart."""

import numpy as np

CLASSES = 12  # C is 0, A is 9
_WIDTH_SEMITONES = 0.5
_CENTRE_HZ = 880.0
_TAPER_OCTAVES = 1.5


def chroma_filters(rate_hz: int, n_fft: int) -> np.ndarray:
    """float32 (n_fft // 2 + 1, 12): what each FFT bin's power adds to each pitch class; 0 Hz adds nothing."""
    bins_hz = np.arange(1, n_fft // 2 + 1) * (rate_hz / n_fft)
    pitch = 12 * np.log2(bins_hz / 440.0) + 9
    apart = (pitch[:, None] - np.arange(CLASSES) + 6) % 12 - 6  # semitones, the short way round
    taper = np.exp(-0.5 * (np.log2(bins_hz / _CENTRE_HZ) / _TAPER_OCTAVES) ** 2)
    weights = np.exp(-0.5 * (apart / _WIDTH_SEMITONES) ** 2) * taper[:, None]
    return np.concatenate([np.zeros((1, CLASSES)), weights]).astype(np.float32)
