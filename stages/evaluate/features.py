"""Representations of recordings of any length, a window at a time. B windows, L hidden states."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.pretrain.model.backbone import Backbone
from stages.signal.rates import FRAMES_PER_S, HOP_SAMPLES

# Attention's cost grows with its square, and no crop was longer in training.
WINDOW_FRAMES = 30 * FRAMES_PER_S


@dataclass(frozen=True)
class Window:
    name: str  # of the recording
    number: int
    last: bool
    wave_N: np.ndarray  # float32


def windows(name: str, wave_N: np.ndarray, net: Backbone) -> Iterator[Window]:
    """Cuts a recording so that frame i of all windows joined begins at sample 320 i, without gaps. The last
    has from half to one and a half times the frames of the others. ValueError for less than one frame."""
    frames = net.model.frames(len(wave_N))
    if frames < 1:
        raise ValueError(f"shorter than one frame ({net.model.samples(1)} samples at 24 kHz)")
    count = max(1, round(frames / WINDOW_FRAMES))
    for number in range(count):
        start, last = number * WINDOW_FRAMES * HOP_SAMPLES, number == count - 1
        end = None if last else start + net.model.samples(WINDOW_FRAMES)
        yield Window(name, number, last, wave_N[start:end])


def batches(found: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Windows of one length together, up to `size`: unpadded, since padding would change the features."""
    waiting = {}
    for window in found:
        length = len(window.wave_N)
        batch = waiting.setdefault(length, [])
        batch.append(window)
        if len(batch) == size:
            yield waiting.pop(length)
    yield from waiting.values()


@torch.no_grad()
def features(net: Backbone, batch: list[Window], layer: int | None) -> list[Tensor]:
    """fp32 on the CPU, for each window: (T, D) of one hidden state, or (L, T, D) of all. Layer 0: the input
    embedding."""
    wave_BN = torch.from_numpy(np.stack([w.wave_N for w in batch])).to(net.mask_vector.device)
    hidden = net.hidden(wave_BN)
    return list((torch.stack(hidden, 1) if layer is None else hidden[layer]).float().cpu())


class Joined:
    """Of windows in any order."""

    def __init__(self):
        self._parts, self._counts = {}, {}

    def add(self, window: Window, found: Tensor) -> tuple[str, Tensor] | None:
        """The recording's name and features, (T, D) or (L, T, D), once it is complete."""
        name, number = window.name, window.number
        parts = self._parts.setdefault(name, {})
        parts[number] = found
        if window.last:
            self._counts[name] = number + 1
        if len(parts) != self._counts.get(name):
            return None
        del self._parts[name]
        return name, torch.cat([parts[number] for number in sorted(parts)], -2)
