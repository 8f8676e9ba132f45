"""The mel teachers' input frames, and a look-up that gives the same codes in any block.

T frames, D = stack · bands input width, C codes. A frame is a window of `n_fft` samples centred on the middle
of label frame [320 i, 320 (i + 1)); stacked frames are neighbours, centred on it together."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from stages.label.base import LabelFunction, Wave, read_checked
from stages.signal.mel import LogMel
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

TILE_FRAMES = 256  # whole tiles in a block keep every frame at the same row of every matrix product
BLOCK_FRAMES = 18 * TILE_FRAMES  # 61 s


class Features:
    """Stacked log bands of a wave in dB: mel bands, or those of `filters` (n_fft // 2 + 1, bands)."""

    def __init__(self, mels: int, n_fft: int, stack: int, device: str, filters: np.ndarray | None = None):
        self._log_mel = LogMel(RATE_HZ, HOP_SAMPLES, mels, n_fft, device, filters)
        self._stack = stack

    def mel(self, wave: Wave, first_frame: int, count: int):
        """float32 (count + stack - 1, bands) in dB; with an even stack centred on the frames' borders."""
        import torch

        first = first_frame * HOP_SAMPLES - (self._stack - 1) * HOP_SAMPLES // 2
        count += self._stack - 1
        start, stop = self._log_mel.span(first, count)
        return self._log_mel(torch.tensor(read_checked(wave, start, stop))[None], first - start, count)[0]

    def tiles(self, wave: Wave, first_frame: int, count: int):
        """The (TILE_FRAMES, D) tiles of a block, oldest frame of a stack first; zeros fill up the last."""
        from torch.nn.functional import pad

        x_TD = self.mel(wave, first_frame, count).unfold(0, self._stack, 1).transpose(1, 2).flatten(1)
        return pad(x_TD, (0, 0, 0, -count % TILE_FRAMES)).split(TILE_FRAMES)


def labeller(features: Features, tile: Callable, threads: int) -> LabelFunction:
    """What `Teacher.open` returns, from `tile`: (T, D) → int64 (T, K)."""
    import torch

    def label(wave: Wave, block_frames: int = BLOCK_FRAMES) -> Iterator[np.ndarray]:
        total = wave.samples // HOP_SAMPLES
        for first in range(0, total, block_frames):
            count = min(block_frames, total - first)
            with threads_set(threads), torch.inference_mode():
                codes_TK = torch.cat([tile(tile_TD) for tile_TD in features.tiles(wave, first, count)])
                block_TK = codes_TK[:count].cpu().numpy().astype(np.uint16)
            yield block_TK

    return label


def best(score_TC):
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
    """torch's own CPU threads, for the time of a block."""
    import torch

    if threads < 1:
        raise ValueError(f"threads: {threads} is less than 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
