"""Representations of recordings of any length, a window at a time. B windows, T frames, L hidden states."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from stages.config import require
from stages.pretrain.model.backbone import Backbone
from stages.signal.rates import RATE_HZ

# Attention's cost grows with its square, and no crop was longer in training.
WINDOW_S = 30.0
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
POOLS = ("none", "mean", "mean_std")  # over a recording's frames; of mean_std the means come first


@dataclass(frozen=True)
class Choices:
    """What decides the features of a recording, beside the weights."""

    layer: int | None = None  # 0: the input embedding; None: all, which comes first in the shape
    pool: str = "none"
    dtype: str = "fp32"  # as stored
    window_s: float = WINDOW_S  # heard at once
    overlap_s: float = 0.0  # of neighbouring windows: each frame is taken from the one it lies deeper in

    def __post_init__(self):
        for name, known in (("pool", POOLS), ("dtype", tuple(DTYPES))):
            require(getattr(self, name) in known, name, getattr(self, name), f"expected {', '.join(known)}")
        require(self.window_s > 0, "window_s", self.window_s, "expected seconds above 0")
        within = f"expected from 0 to below window_s, {self.window_s:g}"
        require(0 <= self.overlap_s < self.window_s, "overlap_s", self.overlap_s, within)

    def about(self) -> dict[str, str]:
        return {k: str(v) for k, v in asdict(self).items()} | ({"layer": "all"} if self.layer is None else {})


@dataclass(frozen=True)
class Window:
    name: str  # of the recording
    number: int
    last: bool
    wave_N: np.ndarray  # float32
    kept: slice | None = None  # of its frames; None: all


def windows(
    name: str, wave_N: np.ndarray, net: Backbone, window_s: float = WINDOW_S, overlap_s: float = 0.0
) -> Iterator[Window]:
    """Cuts a recording so that the kept frames of all windows joined begin every hop, without gaps. The last
    keeps from half to one and a half times the frames of the others. ValueError for less than one frame."""
    model, frames = net.model, net.model.frames(len(wave_N))
    if frames < 1:
        raise ValueError(f"shorter than one frame ({model.samples(1)} samples at 24 kHz)")
    per_s = RATE_HZ / model.hop_samples
    step, margin = max(1, round((window_s - overlap_s) * per_s)), round(overlap_s / 2 * per_s)
    count = max(1, round(frames / step))
    for number in range(count):
        first, last = number * step, number == count - 1
        start = max(0, first - margin)
        stop = frames if last else min(frames, first + step + margin)
        end = None if last else start * model.hop_samples + model.samples(stop - start)
        kept = slice(first - start, (frames if last else first + step) - start)
        yield Window(name, number, last, wave_N[start * model.hop_samples : end], kept)


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
    """fp32 on the CPU, of each window's kept frames: (T, D) of one hidden state, or (L, T, D) of all."""
    wave_BN = torch.from_numpy(np.stack([w.wave_N for w in batch])).to(net.mask_vector.device)
    hidden = net.hidden(wave_BN)
    found = (torch.stack(hidden, 1) if layer is None else hidden[layer]).float().cpu()
    return [part[..., w.kept or slice(None), :] for part, w in zip(found, batch, strict=True)]


class Joined:
    """Of windows in any order; pooled, if at all, over all of a recording's frames alike."""

    def __init__(self, pool: str = "none"):
        self._pool, self._parts, self._counts = pool, {}, {}

    def add(self, window: Window, found: Tensor) -> tuple[str, Tensor] | None:
        """The recording's name and features once it is complete: (T, D) or (L, T, D); pooled, without T."""
        name, number = window.name, window.number
        parts = self._parts.setdefault(name, {})
        parts[number] = found if self._pool == "none" else _sums(found)
        if window.last:
            self._counts[name] = number + 1
        if len(parts) != self._counts.get(name):
            return None
        del self._parts[name]
        parts = [parts[number] for number in sorted(parts)]
        if self._pool == "none":
            return name, torch.cat(parts, -2)
        return name, _moments(torch.stack(parts).sum(0), self._pool == "mean_std")


def _sums(found: Tensor) -> Tensor:
    """fp64 (3, …, D): frames, sums and sums of squares of (…, T, D): fp64 takes their difference."""
    wide = found.double()
    return torch.stack([torch.ones_like(wide).sum(-2), wide.sum(-2), wide.square().sum(-2)])


def _moments(sums: Tensor, deviation: bool) -> Tensor:
    count, total, squares = sums
    mean = total / count
    std = [(squares / count - mean.square()).clamp_min(0).sqrt()] if deviation else []
    return torch.cat([mean, *std], -1).float()


def stored(value: Tensor, dtype: str) -> Tensor:
    """In the dtype to be written. ValueError where it does not hold the values."""
    narrow = value.to(DTYPES[dtype])
    if value.isfinite().all() and not narrow.isfinite().all():
        raise ValueError(f"values up to {value.abs().max():.3g} are more than fp16 holds: use --dtype fp32")
    return narrow
