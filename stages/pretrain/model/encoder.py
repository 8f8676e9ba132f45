"""Positions, then layers. Of the positional convolution: G groups, C channels of a group, W taps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.pretrain.model.attention import Attention, attention_bias
from stages.pretrain.model.config import Model
from stages.pretrain.model.conformer import ConformerLayer
from stages.pretrain.model.convolve import convolve, in_tiles
from stages.pretrain.model.layers import Dropout, LayerNorm, Linear, unused

TILE_FRAMES = 8  # of the positional convolution, which then has 8 × 48 channels out (D make bench-model)


class ConvPositions(nn.Module):
    """A wide grouped convolution with weight-norm over its taps (F wav2vec2.py)."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        (clips, frames, width), groups = x_BTD.shape, self.groups
        kernel, direction_DCW = self.weight_v.shape[2], self.weight_v.float()
        norm_11W = direction_DCW.norm(dim=(0, 1), keepdim=True)
        weight_DCW = (direction_DCW * (self.weight_g.float() / norm_11W)).to(x_BTD.dtype)
        weight_GDWC = weight_DCW.unflatten(0, (groups, -1)).transpose(2, 3).contiguous()
        # Half the taps look back; an even kernel looks a frame less ahead, where F drops the last frame.
        ahead = kernel - kernel // 2 - 1 + -frames % TILE_FRAMES
        x_BtGC = F.pad(x_BTD, (0, 0, kernel // 2, ahead)).unflatten(2, (groups, -1))
        moved = convolve(x_BtGC.permute(2, 0, 1, 3), in_tiles(weight_GDWC, TILE_FRAMES), TILE_FRAMES)
        moved_GBTC = moved.view(groups, clips, -1, width // groups)[:, :, :frames]
        moved_BTD = moved_GBTC.permute(1, 2, 0, 3).reshape(clips, frames, width)
        return F.gelu(moved_BTD + self.bias.to(x_BTD.dtype))


class TransformerLayer(nn.Module):
    """`norm` post: LayerNorm after the sum with the residual, pre: before the part."""

    def __init__(self, model: Model):
        super().__init__()
        self.pre = model.norm == "pre"
        self.attention = Attention(model)
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
    """float (B, T, D) → the input embedding and each layer's output, and the last, normalised in pre-norm."""

    def __init__(self, model: Model):
        super().__init__()
        self.model, self.pre = model, model.norm == "pre"
        self.positions = None
        if model.positions == "conv":
            self.positions = ConvPositions(model.width, model.position_kernel, model.position_groups)
        self.norm = LayerNorm(model.width)
        self.dropout = Dropout(model.hidden_dropout)
        block = ConformerLayer if model.block == "conformer" else TransformerLayer
        self.layers = nn.ModuleList(block(model) for _ in range(model.layers))

    def forward(
        self, x_BTD: Tensor, keep_layers: tuple[bool, ...] | None = None, mask_BT: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        unseen_BT = None if self.model.attend_masked else mask_BT
        bias = attention_bias(x_BTD, self.model.heads, self.model.attention_bias == "alibi", unseen_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(x_BTD)
        x_BTD = self.dropout(x_BTD if self.pre else self.norm(x_BTD))
        hidden = [x_BTD]
        for number, layer in enumerate(self.layers):
            if keep_layers is not None and not keep_layers[number]:
                x_BTD = unused(x_BTD, layer.parameters())
            elif self.model.activation_checkpointing and self.training and torch.is_grad_enabled():
                x_BTD = checkpoint(layer, x_BTD, bias, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, bias)
            hidden.append(x_BTD)
        return hidden, self.norm(x_BTD) if self.pre else x_BTD
