"""Self-attention over all frames of a clip, through `scaled_dot_product_attention`.

B clips, T frames, D width, H heads, E width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.pretrain.model.dropout import kept
from stages.pretrain.model.layers import Linear

ROTARY_BASE = 10_000.0  # arXiv 2104.09864


class Attention(nn.Module):
    """Query, key and value in one product; no clip is padded, so there is no mask."""

    def __init__(self, width: int, heads: int, dropout: float, rotary: bool):
        super().__init__()
        self.heads, self.dropout, self.rotary = heads, dropout, rotary
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        clips, frames, width = x_BTD.shape
        qkv_3BHTE = self.qkv(x_BTD).view(clips, frames, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv_3BHTE.unbind(0)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        mixed_BHTE = attend(query, key, value, self.dropout if self.training else 0.0)
        return self.out(mixed_BHTE.transpose(1, 2).reshape(clips, frames, width))


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """softmax(query · key / √E) · value, each (B, H, T, E), with dropout on the softmax.

    On a CPU torch's fused kernel has no dropout: it would fall back to separate steps in fp32. The same steps in the
    working dtype, with cheaper random bits, take about half its time (D make bench-model).
    """
    if dropout == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    share_BHTT = (query * query.shape[-1] ** -0.5 @ key.transpose(2, 3)).softmax(-1)
    return share_BHTT * kept(share_BHTT.shape, dropout, share_BHTT.dtype) @ value


def rotate(x_BHTE: Tensor) -> Tensor:
    """Rotary positions: the pair (e, e + E/2) of frame t is turned by t · base^(−2e/E) radians; in fp32."""
    frames, half = x_BHTE.shape[-2], x_BHTE.shape[-1] // 2
    rate_E = ROTARY_BASE ** (-torch.arange(half, device=x_BHTE.device, dtype=torch.float32) / half)
    angle_TE = torch.arange(frames, device=x_BHTE.device, dtype=torch.float32)[:, None] * rate_E
    cos, sin = angle_TE.cos(), angle_TE.sin()
    first, second = x_BHTE.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_BHTE.dtype)
