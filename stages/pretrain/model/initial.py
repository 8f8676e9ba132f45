"""Initial values, as fairseq gives them to HuBERT (F wav2vec2.py, hubert.py,
transformer_sentence_encoder.py).

Encoder linears: normal of deviation 0.02, bias 0. Convolutions: He-normal. Positional convolution: normal of
variance 4 / (taps · width), weight-norm's scale its norm. Mask vector and code tables: U(0, 1). Norms: 1 and
0. Input projection, the heads' linears: torch's default."""

from math import sqrt

import torch
from torch import nn

from stages.pretrain.model.conformer import Depthwise
from stages.pretrain.model.encoder import ConvPositions, Encoder
from stages.pretrain.model.front_end import FirstConv, StridedConv
from stages.pretrain.model.layers import LayerNorm

ENCODER_DEVIATION = 0.02


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fill every parameter; draws from torch's global generator."""
    for module in model.modules():
        if isinstance(module, LayerNorm | nn.Linear):
            module.reset_parameters()
        elif isinstance(module, FirstConv | StridedConv):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, ConvPositions):
            module.weight_v.normal_(0, sqrt(4 / (module.weight_v.shape[2] * module.weight_v.shape[0])))
            module.weight_g.copy_(module.weight_v.norm(dim=(0, 1), keepdim=True))
            module.bias.zero_()
        if isinstance(module, FirstConv):
            module.norm_weight.fill_(1)
            module.norm_bias.zero_()
    for module in model.modules():
        if isinstance(module, Encoder):
            for inner in module.modules():
                if isinstance(inner, nn.Linear):
                    inner.weight.normal_(0, ENCODER_DEVIATION)
                    inner.bias.zero_()
                elif isinstance(inner, Depthwise):
                    inner.reset_parameters()
