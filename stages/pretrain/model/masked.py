"""What replaces a masked frame."""

import torch
from torch import Tensor


def apply_mask(x_BTD: Tensor, mask_BT: Tensor, vector_D: Tensor, line: bool) -> Tensor:
    """Masked frames become the vector (F wav2vec2.py apply_mask); with `line` plus `interpolated`, so that
    both sides of a span are known inside it from the first update on; nothing that was masked is (D)."""
    shown = vector_D.to(x_BTD.dtype)
    if line:
        shown = shown + interpolated(x_BTD, mask_BT)
    return torch.where(mask_BT[..., None], shown, x_BTD)


def interpolated(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Masked frames become the line between the nearest unmasked ones; at an end, the nearest one. Every clip
    must have an unmasked frame, as those of `Masking` have."""
    frames = mask_BT.shape[1]
    index = torch.arange(frames, device=mask_BT.device).expand_as(mask_BT)
    left = torch.where(mask_BT, -1, index).cummax(1).values
    right = torch.where(mask_BT, frames, index).flip(1).cummin(1).values.flip(1)
    left, right = torch.where(left < 0, right, left), torch.where(right >= frames, left, right)
    share = ((index - left) / (right - left).clamp_min(1)).unsqueeze(2).to(x_BTD.dtype)

    def at(place_BT: Tensor) -> Tensor:
        return x_BTD.gather(1, place_BT.clamp(0, frames - 1).unsqueeze(2).expand_as(x_BTD))

    return at(left) * (1 - share) + at(right) * share
