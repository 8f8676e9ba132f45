"""Parameters and arithmetic of a model.

A FLOP is a multiplication or an addition of a matrix product or a convolution; norms, activations, softmax
and what a backward pass computes again are not counted."""

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
        depth = 2 if name.startswith("encoder.") else 1
        part = ".".join(name.split(".")[:depth])
        found[part] = found.get(part, 0) + parameter.numel()
    return found


def _front_end(model: Model, samples: int) -> tuple[float, float]:
    """FLOPs of the first convolution, and of the others, forward; 0 for an FFT without gradient."""
    if model.front_end != "conv":
        return 0.0, 0.0
    costs, before, conv = [], 1, model.conv
    for channels, kernel, stride in zip(conv.channels, conv.kernels, conv.strides, strict=True):
        samples = (samples - kernel) // stride + 1
        costs.append(2.0 * samples * channels * before * kernel)
        before = channels
    return costs[0], sum(costs[1:])


def flops(
    model: Model, objective: Objective, codes: tuple[CodeColumn, ...], cqt_bins: int, samples: int
) -> float:
    """Of one crop: the backward is twice the forward, less the gradient of the input itself."""
    frames, width = model.frames(samples), model.width
    first, convolutions = _front_end(model, samples)
    project = 2.0 * frames * model.front_width * width
    positions = 2.0 * frames * model.position_kernel * width * width / model.position_groups
    layer = 2.0 * frames * 4 * width**2 + 4.0 * frames**2 * width  # attention
    if model.block == "transformer":
        layer += 4.0 * frames * width * model.ffn
    else:
        layer += 8.0 * frames * width * model.ffn
        layer += 2.0 * frames * width * (3 * width + model.conformer_kernel)
    masked = MASKED_SHARE * frames
    heads = sum(2.0 * masked * c.codebooks * objective.head_width * (width + c.size) for c in codes)
    heads += 2.0 * masked * width * cqt_bins
    forward = convolutions + project + model.layers * layer + heads
    forward += positions if model.positions == "conv" else 0.0
    return 3.0 * forward + (2 * first if model.front_end == "conv" else -project)
