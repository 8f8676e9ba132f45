"""Frames become what a probe sees: the mean and the deviation of an item's frames, or the frames themselves.

A file's sound goes through the encoder in windows of at most 30 s; an item takes the frames that begin within
it. N items, L layers, D values, T frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stages.evaluate.probe.encoders import Encoder
from stages.evaluate.probe.task import Item

WINDOW_S = 30.0
FRAME_RATE_HZ = 25.0  # of frame-level tasks: faster encoders' frames are averaged to it


@dataclass(frozen=True)
class Features:
    """fp32 (N, L, D) each; or, of frame-level tasks, (T, L, D) fp16 an item."""

    mean_NLD: np.ndarray
    deviation_NLD: np.ndarray
    frames: tuple[np.ndarray, ...] = ()
    frame_s: float = 0.0


def windows(encoder: Encoder, wave_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First frame and (L, T, D) of each window, whose frames follow each other without a gap."""
    hop, least = encoder.hop_samples, encoder.least_samples
    if len(wave_N) < least:
        wave_N = np.pad(wave_N, (0, least - len(wave_N)))
    total = frame_count(encoder, len(wave_N))
    most = int(WINDOW_S * encoder.rate_hz) // hop
    count = max(1, -(-total // most))
    edges = [total * i // count for i in range(count + 1)]
    for first, after in zip(edges, edges[1:], strict=False):
        end = len(wave_N) if after == total else (after - 1) * hop + least
        wave_1N = torch.from_numpy(wave_N[first * hop : end])[None]
        yield first, encoder.hidden(wave_1N)[0, :, : after - first].numpy()


def frame_count(encoder: Encoder, samples: int) -> int:
    return max(0, samples - encoder.least_samples) // encoder.hop_samples + 1


def pooled(encoder: Encoder, wave_N: np.ndarray, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation, (N, L, D) fp32, of each item of one file; sums are float64."""
    hop_s = encoder.hop_samples / encoder.rate_hz
    last = frame_count(encoder, len(wave_N))
    spans = []
    for item in items:
        first = min(round((item.start_s or 0) / hop_s), last - 1)
        after = last if item.end_s is None else round(item.end_s / hop_s)
        spans.append((first, max(after, first + 1)))
    sums = [[0.0, 0.0, 0] for _ in items]
    for begin, hidden_LTD in windows(encoder, wave_N):
        end = begin + hidden_LTD.shape[1]
        for number, (first, after) in enumerate(spans):
            part = hidden_LTD[:, max(first - begin, 0) : max(min(after, end) - begin, 0)].astype(np.float64)
            if part.shape[1]:
                total, squares, count = sums[number]
                sums[number] = [total + part.sum(1), squares + (part**2).sum(1), count + part.shape[1]]
    means, deviations = [], []
    for item, (total, squares, count) in zip(items, sums, strict=True):
        if not count:
            raise ValueError(f"{item.audio} has no sound from {item.start_s} s on")
        mean = total / count
        means.append(mean)
        deviations.append(np.sqrt(np.maximum(squares / count - mean**2, 0)))
    return np.stack(means).astype(np.float32), np.stack(deviations).astype(np.float32)


def framed(encoder: Encoder, wave_N: np.ndarray) -> np.ndarray:
    """(T, L, D) fp16 of a whole file at FRAME_RATE_HZ, or at the encoder's own rate if that is lower."""
    hidden_LTD = np.concatenate([part for _, part in windows(encoder, wave_N)], 1)
    stack = frames_joined(encoder)
    whole = hidden_LTD.shape[1] // stack * stack
    layers, _, width = hidden_LTD.shape
    joined = hidden_LTD[:, :whole].reshape(layers, -1, stack, width).mean(2)
    return joined.transpose(1, 0, 2).astype(np.float16)


def frames_joined(encoder: Encoder) -> int:
    return max(1, round(encoder.rate_hz / encoder.hop_samples / FRAME_RATE_HZ))
