"""How every teacher takes its samples: what it cannot label is refused here, by name, and never becomes a
label."""

import numpy as np

from stages.label.base import RATE_HZ, Wave


def hear(wave: Wave, start: int, stop: int) -> np.ndarray:
    """`wave.read(start, stop)`, checked: float32 (stop - start,) of finite samples at 24 kHz mono.

    Raises ValueError, the recording's reason for rejection, naming the rate, the channels, the dtype
    or the first sample that is NaN or infinite. `ReadError` passes.
    """
    rate_hz = getattr(wave, "rate_hz", RATE_HZ)
    if rate_hz != RATE_HZ:
        raise ValueError(
            f"sample rate {rate_hz} Hz: teachers take {RATE_HZ}; resample it (the decode stage does)"
        )
    sound_N = wave.read(start, stop)
    if sound_N.ndim != 1:
        raise ValueError(
            f"{sound_N.ndim} dimensions, shape {sound_N.shape}: teachers take one channel; mix it to mono"
        )
    if sound_N.dtype != np.float32:
        raise ValueError(
            f"dtype {sound_N.dtype}: teachers take float32 at full scale ±1; convert and scale it"
        )
    finite = np.isfinite(sound_N)
    if not finite.all():
        at = start + int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"samples: NaN or infinity first at sample {at}; leave this recording out or mend it"
        )
    return sound_N
