"""Dropout whose random bits cost little on a CPU.

torch draws a CPU's masks one number at a time on one core: a sixth of a training step of the 95M model (D).
Here SFC64, seeded from torch's generator, gives 16 bits an element, so that seeds, saved generator states and
recomputed layers mean what they always do. Probabilities and scales are rounded to multiples of 2⁻¹⁶: the
expectation is exact. Other devices use torch's own."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1 << 16


def dropout(x: Tensor, share: float) -> Tensor:
    """Elements are zeroed with probability `share`, the rest scaled by 1 / (1 − share)."""
    return x * kept(x.shape, share, x.dtype) if x.device.type == "cpu" else F.dropout(x, share, True)


def kept(shape: torch.Size, share: float, dtype: torch.dtype) -> Tensor:
    """On the CPU: 0 with probability `share`, else 1 / (1 − share)."""
    zeros = min(round(share * STEPS), STEPS - 1)
    seed = int(torch.randint(2**62, ()))
    count = shape.numel()
    bits = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count]).view(
        shape
    )
    return (bits >= zeros - STEPS // 2).to(dtype).mul_(STEPS / (STEPS - zeros))


class Dropout(nn.Module):
    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.share) if self.training and self.share > 0 else x

    def extra_repr(self) -> str:
        return f"{self.share}"
