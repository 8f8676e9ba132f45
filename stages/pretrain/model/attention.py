"""Self-attention over the frames of a clip. H heads, E width of a head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.pretrain.model.config import Model
from stages.pretrain.model.layers import Linear, kept

ROTARY_BASE = 10_000.0  # arXiv 2104.09864
# added to a masked frame's score: fp16 holds it, and a clip that is all mask still has a softmax
UNSEEN = -1e4


class Attention(nn.Module):
    """No clip is padded. `bias`: of `attention_bias`."""

    def __init__(self, model: Model):
        super().__init__()
        self.heads, self.dropout = model.heads, model.attention_dropout
        self.rotary = model.positions == "rotary"
        self.qkv = Linear(model.width, 3 * model.width)
        self.out = Linear(model.width, model.width)

    def forward(self, x_BTD: Tensor, bias: Tensor | None = None) -> Tensor:
        qkv_BT3HE = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1))
        query, key, value = qkv_BT3HE.permute(2, 0, 3, 1, 4).unbind(0)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        mixed_BHTE = attend(query, key, value, self.dropout if self.training else 0.0, bias)
        return self.out(mixed_BHTE.transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, bias: Tensor | None = None) -> Tensor:
    """softmax(query · key / √E + bias) · value, each (B, H, T, E), with dropout on the softmax.

    On a CPU torch's fused kernel has no dropout and falls back to fp32. The same steps in the working dtype,
    with cheaper random bits, take about half its time (D make bench-model)."""
    if dropout == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    score_BHTT = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3)
    share_BHTT = (score_BHTT if bias is None else score_BHTT + bias).softmax(-1)
    return share_BHTT * kept(share_BHTT.shape, dropout, share_BHTT.dtype) @ value


def attention_bias(x_BTD: Tensor, heads: int, alibi: bool, unseen_BT: Tensor | None) -> Tensor | None:
    """What every layer adds to its scores, (B or 1, H or 1, T, T) in x's dtype; None: nothing.

    `alibi`: −|i − j| · 2^(−8 (h + 1) / H) for frames i, j and head h (arXiv 2108.12409, to both sides): the
    first heads begin as means over a few frames, the last over seconds. `unseen_BT`: frames not attended to.
    """
    bias, (_, frames, _), device = None, x_BTD.shape, x_BTD.device
    if alibi:
        frame_T = torch.arange(frames, device=device, dtype=torch.float32)
        slope_H = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, device=device))
        bias = -(frame_T[:, None] - frame_T).abs() * slope_H[None, :, None, None]
    if unseen_BT is not None:
        hidden_B11T = torch.where(unseen_BT, UNSEEN, 0.0)[:, None, None]
        bias = hidden_B11T.expand(-1, 1, frames, -1) if bias is None else bias + hidden_B11T
    return None if bias is None else bias.to(x_BTD.dtype)


def rotate(x_BHTE: Tensor) -> Tensor:
    """Rotary positions: the pair (e, e + E/2) of frame t is turned by t · base^(−2e/E) radians; in fp32."""
    frames, half = x_BHTE.shape[-2], x_BHTE.shape[-1] // 2
    kind = {"device": x_BHTE.device, "dtype": torch.float32}
    rate_E = ROTARY_BASE ** (-torch.arange(half, **kind) / half)
    angle_TE = torch.arange(frames, **kind)[:, None] * rate_E
    cos, sin = angle_TE.cos(), angle_TE.sin()
    first, second = x_BHTE.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_BHTE.dtype)
