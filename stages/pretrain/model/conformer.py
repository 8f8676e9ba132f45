"""A conformer block (arXiv 2005.08100): half feed-forward, attention, convolution, half feed-forward.
LayerNorm replaces the paper's BatchNorm: no clip may depend on others."""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.pretrain.model.attention import Attention
from stages.pretrain.model.config import Model
from stages.pretrain.model.layers import Dropout, LayerNorm, Linear


class HalfFeedForward(nn.Module):
    def __init__(self, model: Model):
        super().__init__()
        self.norm = LayerNorm(model.width)
        self.wide = Linear(model.width, model.ffn)
        self.inner_dropout = Dropout(model.activation_dropout)
        self.narrow = Linear(model.ffn, model.width)
        self.dropout = Dropout(model.hidden_dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        inner = self.inner_dropout(F.silu(self.wide(self.norm(x_BTD))))
        return x_BTD + 0.5 * self.dropout(self.narrow(inner))


class Depthwise(nn.Conv1d):
    """One filter a channel along time, same length out as in."""

    def __init__(self, width: int, kernel: int):
        super().__init__(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight, bias = self.weight.to(x_BTD.dtype), self.bias.to(x_BTD.dtype)
        x_BDT = x_BTD.transpose(1, 2)
        return F.conv1d(x_BDT, weight, bias, padding=self.padding, groups=self.groups).transpose(1, 2)


class Convolution(nn.Module):
    def __init__(self, model: Model):
        super().__init__()
        self.norm = LayerNorm(model.width)
        self.gated = Linear(model.width, 2 * model.width)
        self.depthwise = Depthwise(model.width, model.conformer_kernel)
        self.inner_norm = LayerNorm(model.width)
        self.out = Linear(model.width, model.width)
        self.dropout = Dropout(model.hidden_dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        inner_BTD = self.depthwise(F.glu(self.gated(self.norm(x_BTD)), -1))
        return x_BTD + self.dropout(self.out(F.silu(self.inner_norm(inner_BTD))))


class ConformerLayer(nn.Module):
    def __init__(self, model: Model):
        super().__init__()
        self.before = HalfFeedForward(model)
        self.attention_norm = LayerNorm(model.width)
        self.attention = Attention(model)
        self.attention_drop = Dropout(model.hidden_dropout)
        self.convolution = Convolution(model)
        self.after = HalfFeedForward(model)
        self.norm = LayerNorm(model.width)

    def forward(self, x_BTD: Tensor, bias: Tensor | None = None) -> Tensor:
        x_BTD = self.before(x_BTD)
        x_BTD = x_BTD + self.attention_drop(self.attention(self.attention_norm(x_BTD), bias))
        return self.norm(self.after(self.convolution(x_BTD)))
