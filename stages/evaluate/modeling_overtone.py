"""A trained encoder for transformers: `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.

`overtone export` copies this file beside the weights of every model that HuBERT's layout cannot hold. It
needs torch and transformers alone, and its hidden states are those of training. config.json has the section
`model:` of the run; dropouts serve fine-tuning, layer drop and masking are left out.

B clips, N samples, T frames, C front-end channels, D width, H heads; of the constant-Q transform J blocks of
M frames, R rows of a block's spectrum, K bins."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OvertoneConfig(PretrainedConfig):
    model_type = "overtone"

    def __init__(self, model=None, sample_rate=24_000, hop_samples=320, spectrum=None, **others):
        """`spectrum`: what each spectrum of the front-end computes with, beside its tables."""
        self.model, self.spectrum = model or {}, spectrum or {}
        self.sample_rate, self.hop_samples = sample_rate, hop_samples
        self.hidden_size, self.num_hidden_layers = self.model.get("width"), self.model.get("layers")
        super().__init__(**others)


class FirstConv(nn.Module):
    def __init__(self, channels, kernel, stride):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.norm_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, wave_BN):
        x_BCT = F.conv1d(wave_BN[:, None].to(self.weight.dtype), self.weight, stride=self.stride)
        return F.gelu(F.group_norm(x_BCT, x_BCT.shape[1], self.norm_weight, self.norm_bias))


class ConvFrontEnd(nn.Module):
    def __init__(self, config):
        super().__init__()
        conv = config.model["conv"]
        self.channels = conv["channels"][-1]
        self.sizes = list(zip(conv["kernels"], conv["strides"], strict=True))
        first, *rest = zip(conv["channels"], *zip(*self.sizes, strict=True), strict=True)
        self.first = FirstConv(*first)
        before = zip(conv["channels"], rest, strict=False)
        self.rest = nn.ModuleList(nn.Conv1d(c, *size, bias=False) for c, size in before)

    def frames(self, samples):
        for kernel, stride in self.sizes:
            samples = (samples - kernel) // stride + 1
        return samples

    def forward(self, wave_BN):
        x_BCT = self.first(wave_BN)
        for layer in self.rest:
            x_BCT = F.gelu(layer(x_BCT))
        return x_BCT.transpose(1, 2)


class Spectra(nn.Module):
    """One or two side by side, roughly of mean 0 and deviation 1 on music; in fp32 whatever the dtype."""

    def __init__(self, config):
        super().__init__()
        self.hop = config.hop_samples
        for name in config.model["front_end"].split("_"):
            setattr(self, name, {"mel": LogMel, "cqt": LogConstantQ}[name](config))
        self.channels = sum(part.about["bins"] for part in self.children())

    def frames(self, samples):
        return samples // self.hop

    def forward(self, wave_BN):
        with torch.autocast(wave_BN.device.type, enabled=False):
            parts = [(x(wave_BN.float()) - x.about["centre"]) / x.about["scale"] for x in self.children()]
        return torch.cat(parts, -1)


class LogMel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hop, self.about = config.hop_samples, config.spectrum["mel"]
        self.register_buffer("window", torch.empty(self.about["n_fft"]))
        self.register_buffer("filters", torch.empty(self.about["n_fft"] // 2 + 1, self.about["bins"]))

    def forward(self, wave_BN):
        """dB; frame i is centred on sample hop · (i + ½)."""
        half, frames = self.about["n_fft"] // 2, wave_BN.shape[1] // self.hop
        around = F.pad(wave_BN, (half - self.hop // 2, half)).unfold(1, 2 * half, self.hop)[:, :frames]
        power = torch.view_as_real(torch.fft.rfft(around * self.window.float())).square().sum(-1)
        return (power @ self.filters.float()).clamp_min(self.about["floor"]).log10() * 10


class LogConstantQ(nn.Module):
    """Of magnitudes; frame i is centred on sample hop · i, of odd kernels half a sample earlier. One FFT of a
    block serves all bins: sampled once a hop, each is ifft(Σ_R table · spectrum), of its R rows."""

    def __init__(self, config):
        super().__init__()
        self.hop, self.about = config.hop_samples, config.spectrum["cqt"]
        for number, (bins, _, _, rows) in enumerate(self.about["tables"]):
            self.register_buffer(f"table{number}", torch.empty(self.about["block_frames"], len(bins), rows))

    def forward(self, wave_BN):
        M, around, hop = self.about["block_frames"], self.about["context_frames"], self.hop
        frames, payload = wave_BN.shape[1] // hop, M - 2 * around
        blocks = -(-frames // payload)
        end = (blocks * payload + around) * hop - wave_BN.shape[1]
        blocks_BJN = F.pad(wave_BN, (around * hop, end)).unfold(1, M * hop, payload * hop)
        # fp64: the rounding of a loud tone would show in every quiet bin
        spectrum = torch.fft.fftshift(torch.fft.fft(blocks_BJN.double()), -1)
        cycles = torch.fft.fftshift(torch.fft.fftfreq(M * hop, dtype=torch.float64, device=wave_BN.device))
        late = spectrum * torch.polar(torch.ones_like(cycles), -torch.pi * cycles)
        both = [torch.view_as_real(x.to(torch.complex64).unflatten(2, (hop, M))) for x in (spectrum, late)]
        out_BJKM = wave_BN.new_empty(*blocks_BJN.shape[:2], self.about["bins"], payload)
        for number, (bins, odd, first, rows) in enumerate(self.about["tables"]):
            used_BJRM2 = both[odd][:, :, first + hop // 2 : first + hop // 2 + rows]
            folded = torch.einsum("mkr,bjrmc->bjkmc", getattr(self, f"table{number}").float(), used_BJRM2)
            value = torch.fft.ifft(torch.view_as_complex(folded.contiguous()))
            out_BJKM[:, :, bins] = value[..., around : around + payload].abs()
        return (out_BJKM.transpose(2, 3).flatten(1, 2)[:, :frames] + self.about["floor"]).log()


class Positions(nn.Module):
    """A wide grouped convolution with weight-norm over its taps."""

    def __init__(self, width, kernel, groups):
        super().__init__()
        self.groups, self.bias = groups, nn.Parameter(torch.zeros(width))
        self.weight_g = nn.Parameter(torch.ones(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.ones(width, width // groups, kernel))

    def forward(self, x_BTD):
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        moved_BDT = F.conv1d(x_BTD.mT, weight, self.bias, padding=weight.shape[2] // 2, groups=self.groups)
        return F.gelu(moved_BDT.mT[:, : x_BTD.shape[1]])


class Attention(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.heads, self.dropout = model["heads"], model["attention_dropout"]
        self.rotary = model["positions"] == "rotary"
        self.qkv = nn.Linear(model["width"], 3 * model["width"])
        self.out = nn.Linear(model["width"], model["width"])

    def forward(self, x_BTD, bias):
        query, key, value = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        dropout = self.dropout if self.training else 0.0
        mixed_BHTE = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out(mixed_BHTE.transpose(1, 2).flatten(2))


def rotate(x_BHTE):
    """The pair (e, e + E/2) of frame t is turned by t · 10,000^(−2e/E) radians; in fp32."""
    frames, half = x_BHTE.shape[-2], x_BHTE.shape[-1] // 2
    kind = {"device": x_BHTE.device, "dtype": torch.float32}
    angle_TE = torch.arange(frames, **kind)[:, None] * 10_000.0 ** (-torch.arange(half, **kind) / half)
    cos, sin = angle_TE.cos(), angle_TE.sin()
    first, second = x_BHTE.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_BHTE.dtype)


class FeedForward(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.wide = nn.Linear(model["width"], model["ffn"])
        self.narrow = nn.Linear(model["ffn"], model["width"])
        self.dropout = nn.Dropout(model["hidden_dropout"])
        self.inner_dropout = nn.Dropout(model["activation_dropout"])

    def fed(self, x_BTD, activation):
        return self.dropout(self.narrow(self.inner_dropout(activation(self.wide(x_BTD)))))


class TransformerLayer(FeedForward):
    def __init__(self, model):
        super().__init__(model)
        self.pre = model["norm"] == "pre"
        self.attention = Attention(model)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(model["width"]), nn.LayerNorm(model["width"])

    def forward(self, x_BTD, bias, seen_BT1):
        if self.pre:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), bias))
            return x_BTD + self.fed(self.ffn_norm(x_BTD), F.gelu)
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, bias)))
        return self.ffn_norm(x_BTD + self.fed(x_BTD, F.gelu))


class HalfFeedForward(FeedForward):
    def __init__(self, model):
        super().__init__(model)
        self.norm = nn.LayerNorm(model["width"])

    def forward(self, x_BTD):
        return x_BTD + 0.5 * self.fed(self.norm(x_BTD), F.silu)


class Convolution(nn.Module):
    def __init__(self, model):
        super().__init__()
        width, kernel = model["width"], model["conformer_kernel"]
        self.norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gated, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.dropout = nn.Dropout(model["hidden_dropout"])

    def forward(self, x_BTD, seen_BT1):
        inner_BTD = F.glu(self.gated(self.norm(x_BTD)), -1)
        inner_BTD = inner_BTD if seen_BT1 is None else inner_BTD * seen_BT1
        inner_BTD = self.inner_norm(self.depthwise(inner_BTD.mT).mT)
        return x_BTD + self.dropout(self.out(F.silu(inner_BTD)))


class ConformerLayer(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.before, self.after = HalfFeedForward(model), HalfFeedForward(model)
        self.attention, self.attention_norm = Attention(model), nn.LayerNorm(model["width"])
        self.convolution, self.norm = Convolution(model), nn.LayerNorm(model["width"])
        self.attention_drop = nn.Dropout(model["hidden_dropout"])

    def forward(self, x_BTD, bias, seen_BT1):
        x_BTD = self.before(x_BTD)
        x_BTD = x_BTD + self.attention_drop(self.attention(self.attention_norm(x_BTD), bias))
        return self.norm(self.after(self.convolution(x_BTD, seen_BT1)))


class Encoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.pre, self.heads = model["norm"] == "pre", model["heads"]
        self.alibi = model["attention_bias"] == "alibi"
        sizes = model["width"], model["position_kernel"], model["position_groups"]
        self.positions = Positions(*sizes) if model["positions"] == "conv" else None
        self.norm, self.dropout = nn.LayerNorm(model["width"]), nn.Dropout(model["hidden_dropout"])
        block = ConformerLayer if model["block"] == "conformer" else TransformerLayer
        self.layers = nn.ModuleList(block(model) for _ in range(model["layers"]))

    def forward(self, x_BTD, seen_BT1):
        # what every layer adds to its scores: ALiBi to both sides, and what hides padding
        bias, frame_T = None, torch.arange(x_BTD.shape[1], device=x_BTD.device, dtype=torch.float32)
        if self.alibi:
            slope_H = 2.0 ** (-8.0 / self.heads * torch.arange(1, self.heads + 1, device=x_BTD.device))
            bias = -(frame_T[:, None] - frame_T).abs() * slope_H[None, :, None, None]
        if seen_BT1 is not None:
            padding_B1TT = torch.where(seen_BT1.bool(), 0.0, -1e4).mT[:, None].expand(-1, 1, len(frame_T), -1)
            bias = padding_B1TT if bias is None else bias + padding_B1TT
        bias = None if bias is None else bias.to(x_BTD.dtype)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(x_BTD)
        hidden = [self.dropout(x_BTD if self.pre else self.norm(x_BTD))]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], bias, seen_BT1))
        return hidden, self.norm(hidden[-1]) if self.pre else hidden[-1]


class OvertoneModel(PreTrainedModel):
    config_class = OvertoneConfig
    base_model_prefix = "overtone"
    main_input_name = "input_values"
    _keep_in_fp32_modules_strict = ["window", "filters", r"table\d+"]

    def __init__(self, config):
        super().__init__(config)
        model = config.model
        self.stack = model.get("stack", 1)  # frames of the front-end joined into one
        self.mask_vector = nn.Parameter(torch.zeros(model["width"]))  # of pre-training
        self.front_end = (ConvFrontEnd if model["front_end"] == "conv" else Spectra)(config)
        width = self.stack * self.front_end.channels
        self.input_norm = nn.LayerNorm(width) if model["front_end"] == "conv" else nn.Identity()
        self.input_projection = nn.Linear(width, model["width"])
        self.input_dropout = nn.Dropout(model["input_dropout"])
        self.encoder = Encoder(model)
        self.post_init()

    def forward(self, input_values, attention_mask=None, output_hidden_states=None, **_):
        """Float (B, N), mono, full scale ±1, not normalised → hidden states (B, T, D): the input embedding,
        then each layer's. `attention_mask` (B, N): 0 where a clip is padded at its end, which the norm of the
        first convolution counts, as HuBERT's does, and a spectrum does not."""
        features_BTC = self.front_end(input_values)
        frames = features_BTC.shape[1] // self.stack
        features_BTC = features_BTC[:, : frames * self.stack].reshape(len(features_BTC), frames, -1)
        dtype = self.input_projection.weight.dtype
        x_BTD = self.input_dropout(self.input_projection(self.input_norm(features_BTC.to(dtype))))
        seen_BT1 = None
        if attention_mask is not None and not attention_mask.all():
            count_B1 = self.front_end.frames(attention_mask.sum(1, keepdim=True)) // self.stack
            seen_BT1 = (torch.arange(frames, device=x_BTD.device) < count_B1)[..., None].to(dtype)
            x_BTD = x_BTD * seen_BT1
        hidden, last_BTD = self.encoder(x_BTD, seen_BT1)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutput(last_hidden_state=last_BTD, hidden_states=tuple(hidden) if wanted else None)
