"""Strided convolution along time as one copy and one matrix product over windows of frames.

In frames-first memory a window of W frames is a row of W·C numbers. The library's own of long, thin signals
are several times slower in bf16 on CPUs, forward and backward (D make bench-model), and its grouped ones of 8
channels were wrong (D test_convolve.py).

G groups, B clips, t frames in and T out, C and D channels in and out of a group, W taps."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def windows_of(x_GBtC: Tensor, taps: int, stride: int) -> Tensor:
    """(G, B·T, W·C), copied: the frames that each frame out looks at."""
    groups, clips, frames, channels = x_GBtC.shape
    out = (frames - taps) // stride + 1
    group, clip, frame, _ = x_GBtC.stride()
    view = x_GBtC.as_strided((groups, clips, out, taps * channels), (group, clip, stride * frame, 1))
    return view.reshape(groups, clips * out, taps * channels)


def add_windows(windows: Tensor, shape: torch.Size, taps: int, stride: int) -> Tensor:
    """The transpose of `windows_of`: numbers added where they came from, a stride at a time."""
    groups, clips, frames, channels = shape
    out = windows.shape[1] // clips
    windows = windows.view(groups, clips, out, taps * channels)
    steps = max(-(-frames // stride), out + -(-taps // stride) - 1)
    x = windows.new_zeros(groups, clips, steps, stride * channels)
    for step, first in enumerate(range(0, taps * channels, stride * channels)):
        part = windows[..., first : first + stride * channels]
        x[:, :, step : step + out, : part.shape[-1]] += part
    return x.view(groups, clips, steps * stride, channels)[:, :, :frames]


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_GBtC: Tensor, weight_GDK: Tensor, stride: int) -> Tensor:
        x_GBtC = x_GBtC.contiguous()
        ctx.save_for_backward(x_GBtC, weight_GDK)
        ctx.stride, ctx.taps = stride, weight_GDK.shape[2] // x_GBtC.shape[3]
        out = torch.bmm(windows_of(x_GBtC, ctx.taps, stride), weight_GDK.transpose(1, 2))
        return out.unflatten(1, (x_GBtC.shape[1], -1))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        # made again: windows are larger than what they are made of
        x_GBtC, weight_GDK = ctx.saved_tensors
        gradient = gradient.reshape(len(weight_GDK), -1, weight_GDK.shape[1])
        to_x = to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = torch.bmm(gradient.transpose(1, 2), windows_of(x_GBtC, ctx.taps, ctx.stride))
        if ctx.needs_input_grad[0]:
            to_x = add_windows(torch.bmm(gradient, weight_GDK), x_GBtC.shape, ctx.taps, ctx.stride)
        return to_x, to_weight, None


def convolve(x_GBtC: Tensor, weight_GDWC: Tensor, stride: int) -> Tensor:
    """float (G, B, t, C), weights (G, D, W, C) → (G, B, T, D), T = floor((t − W) / stride) + 1."""
    return _Convolve.apply(x_GBtC, weight_GDWC.to(x_GBtC.dtype).flatten(2), stride)


def in_tiles(weight_GDWC: Tensor, tile: int) -> Tensor:
    """Weights of stride 1 as those of stride `tile` that give `tile` frames at once: (G, tile·D, W + tile −
    1, C). A product with few channels out is slow; this one has `tile` times as many, for (tile − 1) / W more
    arithmetic."""
    return torch.cat([pad(weight_GDWC, (0, 0, i, tile - 1 - i)) for i in range(tile)], 1)
