"""Of a segment's constant-Q magnitudes (T frames at 75 Hz, F bins): energy, tuning, a fingerprint."""

import math

import numpy as np

A4_HZ = 440.0
SLICES = 17  # of a segment; 16 differences in time × 12 pitch classes = 192 bits
FINGERPRINTED = 4  # segments of a recording, from its start: enough to recognise it
QUIET = 1e-6  # mean square magnitude; below it there is no music to recognise


def of_cqt(
    frames_TF: np.ndarray, linear_TF: np.ndarray, fmin_hz: float, bins_per_octave: int, number: int
) -> tuple[dict, np.ndarray]:
    """(statistics, sums (2, F) float64: a column's values and their squares over time).

    frames_TF: float32, the column's, linear or log; linear_TF: their linear magnitude. cqt_max, cqt_mean: of
    the column's values. cqt_octaves: mean square linear magnitude of each octave from fmin up. fingerprint:
    of the first four segments (`number` from 0)."""
    sums_2F = np.stack([frames_TF.sum(0, dtype=np.float64), _energy(frames_TF)])
    energy_F = sums_2F[1] if linear_TF is frames_TF else _energy(linear_TF)
    mean_F = energy_F / max(len(frames_TF), 1)
    octaves = np.split(mean_F, range(bins_per_octave, len(mean_F), bins_per_octave))
    cents, strength = tuning(energy_F, fmin_hz, bins_per_octave)
    return {
        "cqt_max": float(frames_TF.max()) if frames_TF.size else 0.0,
        "cqt_mean": float(sums_2F[0].sum() / max(frames_TF.size, 1)),
        "cqt_octaves": [round(float(part.mean()), 9) for part in octaves],
        "tuning_cents": cents,
        "tuning_strength": strength,
        "fingerprint": fingerprint(linear_TF, bins_per_octave) if number < FINGERPRINTED else None,
    }, sums_2F


def _energy(values_TF: np.ndarray) -> np.ndarray:
    return np.einsum("tf,tf->f", values_TF, values_TF, dtype=np.float64)


def tuning(energy_F: np.ndarray, fmin_hz: float, bins_per_octave: int) -> tuple[float | None, float | None]:
    """(cents from the nearest semitone of A4 = 440 Hz, -50 … 50; how consistent, 0 … 1) of energies (F,).

    Angle and length of their mean on a circle of one semitone; None for silence, and with under three bins a
    semitone."""
    if bins_per_octave < 36 or not energy_F.sum() > 0:
        return None, None
    semitones_F = 12 * np.arange(len(energy_F)) / bins_per_octave + 12 * math.log2(fmin_hz / A4_HZ)
    mean = (energy_F * np.exp(2j * np.pi * semitones_F)).sum() / energy_F.sum()
    return round(float(np.angle(mean) * 50 / np.pi), 1), round(float(abs(mean)), 3)


def fingerprint(frames_TF: np.ndarray, bins_per_octave: int) -> str | None:
    """192 bits as 48 hex digits: for each pitch class, whether it rises against its neighbour between slices.

    Such differences of log energies survive another codec and loudness, as in Haitsma and Kalker's audio
    fingerprint (2002); here of chroma. None for silence, for less than one frame a slice, or when an octave
    does not divide into 12 classes."""
    if bins_per_octave % 12 or len(frames_TF) < SLICES or not float(np.mean(np.square(frames_TF))) > QUIET:
        return None
    borders = np.arange(SLICES) * len(frames_TF) // SLICES
    slices_SF = np.add.reduceat(np.square(frames_TF), borders, axis=0)
    octaves = slices_SF.shape[1] // bins_per_octave
    whole = slices_SF[:, : octaves * bins_per_octave].reshape(SLICES, octaves, 12, bins_per_octave // 12)
    chroma_SP = np.log(whole.sum((1, 3)) + 1e-9)
    across_SP = chroma_SP - np.roll(chroma_SP, -1, axis=1)
    return np.packbits(np.diff(across_SP, axis=0) > 0).tobytes().hex()
