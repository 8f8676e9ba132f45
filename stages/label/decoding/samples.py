"""Samples as libav gives them to int16 mono: the channels' mean, soxr resamples. N samples, C channels."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import soxr

from stages.label.base import RejectRecording

SCALE = {"u8": 1 / 128, "s16": 1 / 32768, "s32": 1 / 2**31, "s64": 1 / 2**63, "flt": 1.0, "dbl": 1.0}


def float_planes(values: np.ndarray, channels: int, name: str) -> np.ndarray:
    """float32 (C, N), not scaled, of planar (C, N) or packed (1, N * C) values of the sample format `name`.

    Raises `RejectRecording` for an unknown format."""
    if name.removesuffix("p") not in SCALE:
        raise RejectRecording(f"unknown sample format {name}")
    planes = values if name.endswith("p") else values.reshape(-1, channels).T
    planes = np.ascontiguousarray(planes, np.float32)
    return planes - np.float32(128) if name.startswith("u8") else planes


def downmix(planes: np.ndarray, channels: int, name: str) -> np.ndarray:
    """The mean of the channels, full scale ±1: float32 (N,) of planes (C, N) of the sample format `name`.

    Raises `RejectRecording` for NaN and infinity."""
    mono = planes[0] if channels == 1 else planes[0] + planes[1]
    for plane in planes[2:]:
        mono += plane
    mono = mono * np.float32(SCALE[name.removesuffix("p")] / channels)
    if name[:3] in ("flt", "dbl") and not (np.isfinite(mono.min()) and np.isfinite(mono.max())):
        raise RejectRecording("NaN or infinite samples")
    return mono


def resampled(blocks: Iterator[tuple[np.ndarray, int]], rate_hz: int, quality: str) -> Iterator[np.ndarray]:
    """float32 (N,) at `rate_hz`. Another source rate in mid-stream starts another resampler."""
    for source_hz, group in groupby(blocks, lambda block: block[1]):
        if source_hz == rate_hz:
            yield from (block for block, _ in group)
            continue
        stream = soxr.ResampleStream(source_hz, rate_hz, 1, dtype="float32", quality=quality)
        for block, _ in group:
            yield stream.resample_chunk(block)
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def to_int16(block: np.ndarray) -> np.ndarray:
    """int16 = clip(round(x * 32768)); later stages read it as stored / 32768."""
    scaled = block * np.float32(32768)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)
