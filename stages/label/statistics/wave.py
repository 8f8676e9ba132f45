"""Of a segment's stored samples, int16 (N,) at 24 kHz: levels, silence, loudness, bandwidth.

Sums of integers below 2**53 are exact in float64, so levels do not depend on the processor; results of
filters are rounded to their accuracy."""

import functools

import numpy as np

from stages.signal.rates import RATE_HZ

FLOOR_DB = -120.0  # of digital silence, instead of minus infinity
SILENCE_DB = -60.0
SILENCE_FRAME = RATE_HZ // 100  # 10 ms
FULL_SCALE = 32768

# ITU-R BS.1770-4: blocks of 400 ms every 100 ms, an absolute gate and one relative to blocks that pass it.
GATE_LUFS = -70.0
RELATIVE_GATE_LU = -10.0
LUFS_OFFSET = -0.691
STEP_SAMPLES = RATE_HZ // 10
BLOCK_STEPS = 4

WINDOW = 2048  # 11.7 Hz a bin
WINDOW_BETA = 14.0  # Kaiser's: skirts are 100 dB down after 5 bins, Hann's after 15 (D)
ROUNDING_POWER = (1 / FULL_SCALE) ** 2 / 12  # of rounding to 16 bits, over all bins (D)
ABOVE_ROUNDING_DB = 12.0  # a bin's mean power so far above the rounding noise is signal (D)
BELOW_LOUDEST_DB = -90.0  # unless so far below the loudest bin, among the window's skirts (D)


def of_wave(segment_N: np.ndarray) -> dict[str, float | None]:
    """Every statistic; N >= 240."""
    return {**levels(segment_N), "lufs": loudness(segment_N), "bandwidth_hz": bandwidth(segment_N)}


def levels(segment_N: np.ndarray) -> dict[str, float]:
    """peak_db, rms_db: dBFS, never below -120. silence: share of whole 10-ms frames below -60 dBFS RMS.
    clipping: share of samples at either end of the scale. dc: mean, full scale 1.

    einsum, not dot: BLAS would wake threads that spin on the child's core."""
    wave = segment_N.astype(np.float64)
    whole = len(wave) // SILENCE_FRAME * SILENCE_FRAME
    frames, rest = wave[:whole].reshape(-1, SILENCE_FRAME), wave[whole:]
    energies = np.einsum("ij,ij->i", frames, frames)
    energy = float(energies.sum() + np.einsum("i,i->", rest, rest))
    quiet = SILENCE_FRAME * (FULL_SCALE * 10 ** (SILENCE_DB / 20)) ** 2
    low, high = int(segment_N.min()), int(segment_N.max())
    ends = np.count_nonzero((segment_N == FULL_SCALE - 1) | (segment_N == -FULL_SCALE))
    return {
        "peak_db": decibels(max(-low, high)),
        "rms_db": decibels((energy / len(wave)) ** 0.5),
        "silence": float(np.mean(energies < quiet)),
        "clipping": ends / len(segment_N),
        "dc": float(wave.sum()) / len(segment_N) / FULL_SCALE,
    }


def decibels(amplitude: float) -> float:
    """dBFS of an amplitude on the int16 scale."""
    return max(FLOOR_DB, float(20 * np.log10(max(amplitude, 1e-9) / FULL_SCALE)))


@functools.cache
def _k_weighting() -> np.ndarray:
    """Second-order sections (2, 6)."""
    from pyloudnorm import Meter

    return np.array([[*stage.b, *stage.a] for stage in Meter(RATE_HZ)._filters.values()])


def loudness(segment_N: np.ndarray) -> float | None:
    """Integrated loudness in LUFS (BS.1770-4), two decimals; -70 where no block passes the gate; None below
    one block of 400 ms.

    The filters are pyloudnorm's; its meter, which reads every sample four times, takes three times as long
    (D)."""
    from scipy.signal import sosfilt

    steps = len(segment_N) // STEP_SAMPLES
    if steps < BLOCK_STEPS:
        return None
    if not segment_N.any():
        return GATE_LUFS
    filtered = sosfilt(_k_weighting(), segment_N[: steps * STEP_SAMPLES] / FULL_SCALE).reshape(steps, -1)
    summed = np.concatenate([[0.0], np.cumsum(np.einsum("ij,ij->i", filtered, filtered))])
    power = np.maximum(summed[BLOCK_STEPS:] - summed[:-BLOCK_STEPS], 0) / (BLOCK_STEPS * STEP_SAMPLES)
    passed = power[_lufs(power) >= GATE_LUFS]
    if not len(passed):
        return GATE_LUFS
    passed = passed[_lufs(passed) > _lufs(passed.mean()) + RELATIVE_GATE_LU]
    return round(float(_lufs(passed.mean())), 2)


def _lufs(power: np.ndarray) -> np.ndarray:
    return LUFS_OFFSET + 10 * np.log10(np.maximum(power, 1e-12))


def bandwidth(segment_N: np.ndarray) -> float | None:
    """Frequency in Hz above which there is no signal, to 50 Hz: 0 for silence, 12,000 at most; None for
    segments under one window of 2,048 samples."""
    frames = len(segment_N) // WINDOW
    if not frames:
        return None
    window = np.kaiser(WINDOW, WINDOW_BETA).astype(np.float32)
    wave = segment_N[: frames * WINDOW].reshape(frames, WINDOW)[::2].astype(np.float32)  # half are enough
    wave -= wave.mean(1, keepdims=True)  # a constant offset is no sound
    wave *= window / FULL_SCALE
    parts = np.fft.rfft(wave).view(np.float32)  # real and imaginary in turn
    power = np.einsum("ij,ij->j", parts, parts).reshape(-1, 2).sum(1) / len(wave)
    floor = ROUNDING_POWER * float(np.square(window).sum()) * 10 ** (ABOVE_ROUNDING_DB / 10)
    signal = np.flatnonzero(power > max(floor, power.max() * 10 ** (BELOW_LOUDEST_DB / 10)))
    return round(float(signal[-1] * RATE_HZ / WINDOW), 1) if len(signal) else 0.0
