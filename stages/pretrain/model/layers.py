"""Layers that compute in the dtype of what flows through them, whatever dtype their weights have.

One rule serves fp32, weights cast to bf16 or fp16, and fp32 weights under `torch.autocast`: `Mert` casts its
input to the working dtype once and switches autocast off, every layer casts its weights to its input's dtype,
what needs fp32 casts to it. Each weight is used once a step, so nothing is cast twice. LayerNorm's and
softmax's sums are fp32 inside torch's kernels for every dtype."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def working_dtype(weight: Tensor) -> torch.dtype:
    """Autocast's where it is on for this device, else the weights'."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def autocast(device: str, dtype: torch.dtype) -> torch.autocast:
    """Autocast to a run's precision; off for fp32."""
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
        )


STEPS = 1 << 16  # of a share in `kept`


class Dropout(nn.Module):
    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.share) if self.training and self.share > 0 else x


def dropout(x: Tensor, share: float) -> Tensor:
    """Elements are zeroed with probability `share`, the rest scaled by 1 / (1 − share)."""
    return x * kept(x.shape, share, x.dtype) if x.device.type == "cpu" else F.dropout(x, share, True)


def kept(shape: torch.Size, share: float, dtype: torch.dtype) -> Tensor:
    """On the CPU: 0 with probability `share`, in multiples of 2⁻¹⁶, else 1 / (1 − share).

    torch draws a CPU's masks one number at a time: a sixth of a training step of the 95M model (D).
    Here SFC64, seeded from torch's generator, gives 16 bits an element, so that seeds, saved generator states
    and recomputed layers mean what they always do.
    """
    zeros, count = min(round(share * STEPS), STEPS - 1), shape.numel()
    random = np.random.SFC64(int(torch.randint(2**62, ())))
    bits = torch.from_numpy(random.random_raw(-(-count // 4)).view(np.int16)[:count]).view(shape)
    return (bits >= zeros - STEPS // 2).to(dtype).mul_(STEPS / (STEPS - zeros))


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself; its gradient is multiplied by `scale` (F GradMultiply)."""
    return x if scale == 1 else _ScaleGradient.apply(x, scale)


class _Unused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(weight) for weight in ctx.saved_tensors)


def unused(x: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """x itself; the weights get gradients of zero instead of none, as ZeRO's reduction and other ranks
    expect.

    Weights split by ZeRO-3 (they carry a ds_id) get none: it may gather or free them while the graph lives,
    and what is left out is the same on every rank."""
    return _Unused.apply(x, *(weight for weight in weights if not hasattr(weight, "ds_id")))
