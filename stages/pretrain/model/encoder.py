"""The stack above the front-end: positions, then transformer (or conformer) layers.

B clips, T frames, D width; of the positional convolution: G groups, C channels of a group, W taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.pretrain.model.attention import Attention, attention_bias
from stages.pretrain.model.config import Model
from stages.pretrain.model.conformer import ConformerLayer
from stages.pretrain.model.convolve import convolve, in_tiles
from stages.pretrain.model.dropout import Dropout
from stages.pretrain.model.layers import LayerNorm, Linear, unused

# of the positional convolution: 8 × 48 channels out make a product worth its name (D make bench-model)
TILE_FRAMES = 8


class ConvPositions(nn.Module):
    """Positions by a wide grouped convolution with weight-norm over its taps (F wav2vec2.py)."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        clips, frames, width = x_BTD.shape
        kernel = self.weight_v.shape[2]
        direction_DCW = self.weight_v.float()
        weight_DCW = (
            direction_DCW * (self.weight_g.float() / direction_DCW.norm(dim=(0, 1), keepdim=True))
        ).to(x_BTD.dtype)
        tiles_GDWC = in_tiles(
            weight_DCW.unflatten(0, (self.groups, -1)).transpose(2, 3).contiguous(), TILE_FRAMES
        )
        # Half the taps look back; an even kernel looks a frame less ahead, where F drops the last frame.
        ahead = kernel - kernel // 2 - 1 + -frames % TILE_FRAMES
        padded_GBtC = (
            F.pad(x_BTD, (0, 0, kernel // 2, ahead)).unflatten(2, (self.groups, -1)).permute(2, 0, 1, 3)
        )
        moved_GBTC = convolve(padded_GBtC, tiles_GDWC, TILE_FRAMES).view(
            self.groups, clips, -1, width // self.groups
        )
        return F.gelu(
            moved_GBTC[:, :, :frames].permute(1, 2, 0, 3).reshape(clips, frames, width)
            + self.bias.to(x_BTD.dtype)
        )


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with its residual; `norm` post: LayerNorm after the sum, pre: before
    the part."""

    def __init__(self, model: Model):
        super().__init__()
        self.pre = model.norm == "pre"
        self.attention = Attention(
            model.width, model.heads, model.attention_dropout, model.positions == "rotary"
        )
        self.attention_norm = LayerNorm(model.width)
        self.wide = Linear(model.width, model.ffn)
        self.narrow = Linear(model.ffn, model.width)
        self.ffn_norm = LayerNorm(model.width)
        self.dropout, self.inner_dropout = Dropout(model.hidden_dropout), Dropout(model.activation_dropout)

    def forward(self, x_BTD: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.pre:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), bias))
            return x_BTD + self.dropout(self.feed_forward(self.ffn_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, bias)))
        return self.ffn_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        return self.narrow(self.inner_dropout(F.gelu(self.wide(x_BTD))))


class Encoder(nn.Module):
    """float (B, T, D) → the hidden states (the input embedding, then each layer's output), and the last,
    normalised in pre-norm."""

    def __init__(self, model: Model):
        super().__init__()
        self.pre, self.checkpointing = model.norm == "pre", model.activation_checkpointing
        self.heads, self.alibi, self.attend_masked = (
            model.heads,
            model.attention_bias == "alibi",
            model.attend_masked,
        )
        self.positions = (
            ConvPositions(model.width, model.position_kernel, model.position_groups)
            if model.positions == "conv"
            else None
        )
        self.norm = LayerNorm(model.width)
        self.dropout = Dropout(model.hidden_dropout)
        block = ConformerLayer if model.block == "conformer" else TransformerLayer
        self.layers = nn.ModuleList(block(model) for _ in range(model.layers))

    def forward(
        self, x_BTD: Tensor, keep_layers: tuple[bool, ...] | None = None, mask_BT: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        bias = attention_bias(x_BTD, self.heads, self.alibi, None if self.attend_masked else mask_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(x_BTD)
        hidden = [self.dropout(x_BTD if self.pre else self.norm(x_BTD))]
        for number, layer in enumerate(self.layers):
            keep = keep_layers is None or keep_layers[number]
            hidden.append(
                self._layer(layer, hidden[-1], bias) if keep else unused(hidden[-1], layer.parameters())
            )
        return hidden, self.norm(hidden[-1]) if self.pre else hidden[-1]

    def _layer(self, layer: nn.Module, x_BTD: Tensor, bias: Tensor | None) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, x_BTD, bias, use_reentrant=False)
        return layer(x_BTD, bias)
