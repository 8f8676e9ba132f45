"""What the mel teachers share: their input frames, and a look-up that gives the same codes in any block.

T frames, D = stack · bands input width, C codes. A frame is a window of `n_fft` samples centred on the middle
of label frame [320 i, 320 (i + 1)); stacked frames are neighbours, centred on it together."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from stages.label.base import LabelFunction, Wave, read_checked
from stages.signal.mel import LogMel
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

if TYPE_CHECKING:
    from torch import Tensor

TILE_FRAMES = 256  # whole tiles in a block keep every frame at the same row of every matrix product
BLOCK_FRAMES = 18 * TILE_FRAMES  # 61 s


class Features:
    """Stacked log bands of a wave in dB: mel bands, or those of `filters` (n_fft // 2 + 1, bands)."""

    def __init__(self, mels: int, n_fft: int, stack: int, device: str, filters: np.ndarray | None = None):
        self._log_mel = LogMel(RATE_HZ, HOP_SAMPLES, mels, n_fft, device, filters)
        self._stack = stack

    def mel(self, wave: Wave, first_frame: int, count: int) -> "Tensor":
        """float32 (count + stack - 1, bands) in dB; with an even stack centred on the frames' borders."""
        import torch

        first = first_frame * HOP_SAMPLES - (self._stack - 1) * HOP_SAMPLES // 2
        start, stop = self._log_mel.span(first, count + self._stack - 1)
        samples_1N = torch.tensor(read_checked(wave, start, stop))[None]
        return self._log_mel(samples_1N, first - start, count + self._stack - 1)[0]

    def stacked(self, mel_TF: "Tensor") -> "Tensor":
        """(count + stack - 1, bands) → (count, D), oldest frame first."""
        return mel_TF.unfold(0, self._stack, 1).transpose(1, 2).flatten(1)

    def tiles(self, wave: Wave, first_frame: int, count: int) -> "Iterator[Tensor]":
        """The (TILE_FRAMES, D) tiles of a block; the last is filled up with zeros."""
        import torch

        x_TD = self.stacked(self.mel(wave, first_frame, count))
        return iter(torch.nn.functional.pad(x_TD, (0, 0, 0, -count % TILE_FRAMES)).split(TILE_FRAMES))


def labeller(features: Features, tile: "Callable[[Tensor], Tensor]", threads: int) -> LabelFunction:
    """What `Teacher.open` returns, from `tile`: (T, D) → int64 (T, K).

    Blocks of about a minute, floor(samples / 320) frames in all; ValueError for unreadable samples."""

    def codes(wave: Wave, first: int, count: int) -> np.ndarray:
        import torch

        with threads_set(threads), torch.inference_mode():
            named = [tile(tile_TD) for tile_TD in features.tiles(wave, first, count)]
            return torch.cat(named)[:count].cpu().numpy().astype(np.uint16)

    def label(wave: Wave, block_frames: int = BLOCK_FRAMES) -> Iterator[np.ndarray]:
        total = wave.samples // HOP_SAMPLES
        for first in range(0, total, block_frames):
            yield codes(wave, first, min(block_frames, total - first))

    return label


def best(score_TC: "Tensor") -> "Tensor":
    """argmax over codes, (T, C) → int64 (T,), in two steps: torch's own is ten times slower on CPUs."""
    import torch

    if score_TC.shape[1] % 32:
        return score_TC.argmax(1)
    groups_TGC = score_TC.unflatten(1, (-1, 32))
    group_T = groups_TGC.amax(2).argmax(1)
    inside_T = groups_TGC[torch.arange(len(group_T), device=group_T.device), group_T].argmax(1)
    return group_T * 32 + inside_T


@contextlib.contextmanager
def threads_set(threads: int) -> Iterator[None]:
    """torch's own count of CPU threads, for the time of a block."""
    import torch

    if threads < 1:
        raise ValueError(f"threads: {threads} is less than 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
