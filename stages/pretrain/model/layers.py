"""Layers that compute in the dtype of what flows through them, whatever dtype their weights have.

One rule serves fp32, weights cast to bf16 or fp16, and fp32 weights under `torch.autocast`: `Mert` casts its
input to the working dtype once and switches autocast off, every layer casts its weights to its input's dtype,
what needs fp32 casts to it. Each weight is used once a step, so nothing is cast twice. LayerNorm's and
softmax's sums are fp32 inside torch's kernels for every dtype."""

from collections.abc import Iterable

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
