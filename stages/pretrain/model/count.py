"""Parameters and arithmetic of a model, counted.

A FLOP is a multiplication or an addition of a matrix product or a convolution; norms, activations and softmax
are not counted, and neither is anything a backward pass computes again.
"""

from math import prod

from torch import nn

from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.config import Model
from stages.pretrain.model.objective import Objective

# of frames, with probability 0.8 and spans of 5 (recipe D); only the heads' small part hangs on it
MASKED_SHARE = 0.58


def parts(model: nn.Module) -> dict[str, int]:
    """Parameters by part, in the order data flows."""
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        first, _, rest = name.partition(".")
        part = f"encoder.{rest.partition('.')[0]}" if first == "encoder" else first
        found[part] = found.get(part, 0) + parameter.numel()
    return found


def _front_end(model: Model, samples: int) -> tuple[float, float]:
    """FLOPs of the first convolution, and of the others, forward."""
    if model.front_end != "conv":
        return 0.0, 0.0  # an FFT without gradient
    costs, before = [], 1
    for channels, kernel, stride in zip(
        model.conv.channels, model.conv.kernels, model.conv.strides, strict=True
    ):
        samples = (samples - kernel) // stride + 1
        costs.append(2.0 * samples * channels * before * kernel)
        before = channels
    return costs[0], sum(costs[1:])


def flops(
    model: Model, objective: Objective, codes: tuple[CodeColumn, ...], cqt_bins: int, samples: int
) -> float:
    """Of forward and backward for one crop: the backward is twice the forward, less the gradient of the input
    itself."""
    frames, width = model.frames(samples), model.width
    first, convolutions = _front_end(model, samples)
    project = 2.0 * frames * model.front_width * width
    positions = (
        2.0 * frames * model.position_kernel * width * width / model.position_groups
        if model.positions == "conv"
        else 0.0
    )
    attention = 2.0 * frames * 4 * width**2 + 4.0 * frames**2 * width
    if model.block == "transformer":
        layer = attention + 4.0 * frames * width * model.ffn
    else:
        layer = (
            attention
            + 8.0 * frames * width * model.ffn
            + 2.0 * frames * width * (3 * width + model.conformer_kernel)
        )
    masked = MASKED_SHARE * frames
    heads = sum(2.0 * masked * prod((c.codebooks, objective.head_width)) * (width + c.size) for c in codes)
    heads += 2.0 * masked * width * cqt_bins
    first_backward = 1 if model.front_end == "conv" else 0
    no_input_gradient = project if model.front_end != "conv" else 0.0
    forward = convolutions + project + positions + model.layers * layer + heads
    return 3.0 * forward + first * (1 + first_backward) - no_input_gradient
