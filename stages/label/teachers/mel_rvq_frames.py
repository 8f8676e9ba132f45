"""What Mel-RVQ and k-means are fitted on: a seeded sample of stretches of the corpus, some of it held out.

N mel frames in memory (30 fit_minutes of 128 bins: 69 MB), T frames to fit on, D input width, F mel bins."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.label.base import Wave
from stages.label.teachers.features import Features
from stages.label.teachers.recipes import FRAMES_PER_CODE
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

STRETCH_FRAMES = 300  # 4 s: short, for many recordings, but long against a window of 6 hops
HELDOUT_SHARE = 0.05


class Frames:
    """Normalised mel of all stretches end to end, and where each frame starts in it."""

    def __init__(self, mels: list[Tensor], heldout: list[bool], stack: int):
        self._stack, starts, base = stack, ([], []), 0
        for mel_TF, held in zip(mels, heldout, strict=True):
            starts[held].append(torch.arange(base, base + len(mel_TF) - stack + 1))
            base += len(mel_TF)
        device = mels[0].device
        self.fit_T, self.heldout_T = (torch.cat(part).to(device) for part in starts)
        seen = torch.cat([mel for mel, held in zip(mels, heldout, strict=True) if not held]).double()
        self.mean_db = seen.mean().float()
        self.std_db = seen.std().float().clamp_min(1e-2)  # a corpus of silence has no spread
        self._mel_NF = torch.cat(mels).sub_(self.mean_db).div_(self.std_db)

    def stacked(self, starts_T: Tensor) -> Tensor:
        """(T,) starts → (T, D)."""
        return self._mel_NF[starts_T[:, None] + torch.arange(self._stack, device=starts_T.device)].flatten(1)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless shuffled epochs over the fitting frames, in (B, D) that run across them."""
        left = torch.empty(0, dtype=torch.int64)
        while True:
            while len(left) < size:
                left = torch.cat([left, torch.randperm(len(self.fit_T), generator=generator)])
            yield self.stacked(self.fit_T[left[:size].to(self.fit_T.device)])
            left = left[size:]


def read_stretches(
    recipe: Any, features: Features, waves: Sequence[Wave], generator: torch.Generator, progress: Callable
) -> tuple[list[Tensor], list[bool]]:
    """Log bands (t, F) of seeded stretches of the waves, and which are held out."""
    lengths = np.array([wave.samples // HOP_SAMPLES for wave in waves], np.int64)
    budget, total = int(recipe.fit_minutes * 60 * RATE_HZ / HOP_SAMPLES), lengths.sum()
    needed = FRAMES_PER_CODE * recipe.codebook_size
    if min(total, budget) < needed:
        raise ValueError(
            f"codebook_size: {recipe.codebook_size} needs at least {needed} frames to fit, the {len(waves)} "
            f"recordings hold {total} ({total * HOP_SAMPLES / RATE_HZ:.1f} s); add audio or lower "
            f"codebook_size to at most {total // FRAMES_PER_CODE}"
        )
    pieces, mels = draw_stretches(lengths, budget, generator), []
    ticker = Ticker("read", len(pieces), progress)
    for done, (index, first, count, _) in enumerate(pieces):
        try:
            mels.append(features.mel(waves[index], first, count))
        except ValueError as error:
            raise ValueError(f"recording {index} of {len(waves)}, {error}") from error
        ticker.tick(done + 1, None)
    return mels, [held for *_, held in pieces]


def draw_stretches(
    lengths: np.ndarray, budget: int, generator: torch.Generator
) -> list[tuple[int, int, int, bool]]:
    """(wave, first frame, frames, held out) pieces of the recordings laid end to end, in their order.

    Of more than `budget` frames one stretch is drawn in each of equal strata, so every recording is read in
    proportion to its length. About one stretch in twenty, at least one, is held out whole."""
    total, ends = int(lengths.sum()), np.cumsum(lengths)
    size = min(STRETCH_FRAMES, max(1, min(total, budget) // 20))
    if total <= budget:
        starts = np.arange(0, total, size)
    else:
        strata = budget // size
        slack = total / strata - size
        inside = torch.rand(strata, generator=generator, dtype=torch.float64).numpy() * slack
        starts = np.floor(np.arange(strata) * (total / strata) + inside).astype(np.int64)
    order, count = torch.randperm(len(starts), generator=generator), round(len(starts) * HELDOUT_SHARE)
    held, pieces = set(order[: max(1, count)].tolist()), []
    for number, start in enumerate(starts.tolist()):
        stop = min(start + size, total)
        while start < stop:
            wave = int(np.searchsorted(ends, start, side="right"))
            count = min(stop, int(ends[wave])) - start
            pieces.append((wave, start - int(ends[wave] - lengths[wave]), count, number in held))
            start += count
    return pieces


class Ticker:
    """Reports progress about once a second, and at the end of a phase."""

    def __init__(self, phase: str, steps: int, progress: Callable[[dict], None]):
        self._phase, self._steps, self._progress = phase, steps, progress
        self._began = self._last = time.monotonic()

    def tick(self, step: int, loss: Tensor | None) -> None:
        now = time.monotonic()
        if now - self._last < 1.0 and step < self._steps:
            return
        self._last = now
        eta_s = round((now - self._began) * (self._steps - step) / step, 1)
        event = {"phase": self._phase, "step": step, "steps": self._steps}
        self._progress(event | {"loss": loss if loss is None else float(loss), "eta_s": eta_s})
