"""The part of MERT that is kept after pre-training. C front-end channels."""

from collections import Counter
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from stages.config import require
from stages.pretrain.model.config import Model
from stages.pretrain.model.conformer import Depthwise
from stages.pretrain.model.encoder import ConvPositions, Encoder
from stages.pretrain.model.front_end import FirstConv, StridedConv, front_end
from stages.pretrain.model.layers import Dropout, LayerNorm, Linear, scale_gradient, working_dtype
from stages.pretrain.model.masked import apply_mask

ENCODER_DEVIATION = 0.02


class Backbone(nn.Module):
    """Initial values are drawn from torch's global generator."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        self.mask_vector = nn.Parameter(torch.empty(model.width))
        self.front_end = front_end(model)
        # a log spectrum is normalised, and its mean is its level, which the CQT depends on
        self.input_norm = LayerNorm(model.front_width) if model.front_end == "conv" else nn.Identity()
        self.input_projection = Linear(model.front_width, model.width)
        self.input_dropout = Dropout(model.input_dropout)
        self.encoder = Encoder(model)
        nn.init.uniform_(self.mask_vector)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """As fairseq does for HuBERT (F wav2vec2.py, hubert.py, transformer_sentence_encoder.py): He-normal
        convolutions, normal encoder linears; of linears outside it and norms torch's default."""
        for module in self.modules():
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
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, ENCODER_DEVIATION)
                module.bias.zero_()
            elif isinstance(module, Depthwise):
                module.reset_parameters()

    def encode(self, wave_BN: Tensor, mask_BT: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Hidden states (input embedding, then each layer) and the encoder's output, (B, T, D) in the working
        dtype: HubertModel's `hidden_states` and `last_hidden_state`, which pre-norm's final LayerNorm sets
        apart."""
        dtype = working_dtype(self.mask_vector)
        with torch.autocast(wave_BN.device.type, enabled=False):
            return self._encode(self._features(wave_BN, dtype)[0], mask_BT, None)

    def hidden(self, wave_BN: Tensor, mask_BT: Tensor | None = None) -> list[Tensor]:
        return self.encode(wave_BN, mask_BT)[0]

    def parts(self) -> dict[str, int]:
        """Parameters by part, in the order data flows."""
        found = Counter()
        for name, parameter in self.named_parameters():
            depth = 2 if name.startswith("encoder.") else 1
            found[".".join(name.split(".")[:depth])] += parameter.numel()
        return dict(found)

    def compile(self, **options: Any) -> None:
        """By part, since every choice of layers to leave out would be a compiled form of its own."""
        convolutions = [self.front_end] if self.model.front_end == "conv" else []
        convolutions += [self.encoder.positions] if self.encoder.positions else []
        for part in (*convolutions, *self.encoder.layers):
            part.compile(**options)

    def _features(self, wave_BN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Front-end output (B, T, C) and its mean square, fp32; both gradients are scaled (F hubert.py)."""
        features_BTC = scale_gradient(self.front_end(wave_BN.float(), dtype), self.model.gradient_scale)
        penalty = features_BTC.float().square().mean()  # a spectrum's cannot be made smaller
        return features_BTC, penalty if self.model.front_end == "conv" else torch.zeros_like(penalty)

    def _encode(
        self, features_BTC: Tensor, mask_BT: Tensor | None, keep_layers: tuple[bool, ...] | None
    ) -> tuple[list[Tensor], Tensor]:
        if (stack := self.model.stack) > 1:
            whole = features_BTC.shape[1] // stack * stack
            features_BTC = features_BTC[:, :whole].unflatten(1, (-1, stack)).flatten(2)
        x_BTD = self.input_dropout(self.input_projection(self.input_norm(features_BTC)))
        if mask_BT is not None:
            remedy = f"expected {tuple(x_BTD.shape[:2])}, as `Model.frames` counts them"
            require(mask_BT.shape == x_BTD.shape[:2], "mask_BT", tuple(mask_BT.shape), remedy)
            x_BTD = apply_mask(x_BTD, mask_BT, self.mask_vector, self.model.masked_input == "line")
        return self.encoder(x_BTD, keep_layers, mask_BT)
