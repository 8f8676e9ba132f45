"""From a waveform to frames at 75 Hz, frames-first: see `convolve`.

t frames before and T after a convolution, C and D channels in and out, W taps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.pretrain.model.config import ConvFront, CqtFront, MelFront, Model
from stages.pretrain.model.convolve import convolve
from stages.signal.cqt import ConstantQ, CqtSpec
from stages.signal.mel import FLOOR_POWER, LogMel
from stages.signal.rates import HOP_SAMPLES, RATE_HZ
from stages.signal.tables import table_cache

NORM_EPS = 1e-5  # torch's default, which F and transformers use
# of music, roughly (D on the quickstart corpus); the next of ln(magnitude + 0.001)
MEL_CENTRE_DB, MEL_SCALE_DB = -40.0, 20.0
CQT_FLOOR, CQT_CENTRE, CQT_SCALE = 1e-3, -2.4, 2.0


class FirstConv(nn.Module):
    """With GroupNorm of one channel a group and GELU: float (B, N) → (B, T, D)."""

    def __init__(self, channels: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.norm_weight = nn.Parameter(torch.empty(channels))
        self.norm_bias = nn.Parameter(torch.empty(channels))

    def forward(self, wave_BN: Tensor, dtype: torch.dtype) -> Tensor:
        weight_BDW, bias_BD = self.fold_group_norm(wave_BN)
        windows_BTW = wave_BN.unfold(1, self.weight.shape[2], self.stride)
        # ones take the bias into the product, so that its gradient is no pass of its own
        windows_BTW = torch.cat([windows_BTW, torch.ones_like(windows_BTW[..., :1])], 2).to(dtype)
        weight_BDW = torch.cat([weight_BDW, bias_BD[..., None]], 2).to(dtype)
        return F.gelu(torch.bmm(windows_BTW, weight_BDW.transpose(1, 2)))

    def fold_group_norm(self, wave_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Convolution and GroupNorm as one convolution of each clip's own: fp32 (B, D, W), (B, D).

        Of the windows' mean m and covariance S a channel's mean and variance over time are w·m and wᵀSw. Sums
        are in float64, for clips with a large constant part."""
        weight_DW = self.weight.float()[:, 0]
        windows_BTW = wave_BN.unfold(1, weight_DW.shape[1], self.stride).double()
        mean_BW = windows_BTW.mean(1)
        centred_BTW = windows_BTW - mean_BW[:, None]
        covariance_BWW = (centred_BTW.transpose(1, 2) @ centred_BTW) / windows_BTW.shape[1]
        variance_BD = torch.einsum("dw,bwv,dv->bd", weight_DW.double(), covariance_BWW, weight_DW.double())
        scale_BD = self.norm_weight.double() * (variance_BD + NORM_EPS).rsqrt()
        bias_BD = self.norm_bias.double() - scale_BD * (mean_BW @ weight_DW.double().T)
        return scale_BD.float()[..., None] * weight_DW, bias_BD.float()


class StridedConv(nn.Module):
    """No bias; GELU: float (B, t, C) → (B, T, D)."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels_in, kernel))

    def forward(self, x_BtC: Tensor) -> Tensor:
        return F.gelu(convolve(x_BtC[None], self.weight.transpose(1, 2)[None], self.stride)[0])


class ConvFrontEnd(nn.Module):
    """Float32 (B, N) → (B, T, D) in `dtype`; frame i is centred near sample 320 i + 200 (recipe D)."""

    def __init__(self, sizes: ConvFront):
        super().__init__()
        first, *rest = zip(sizes.channels, sizes.kernels, sizes.strides, strict=True)
        self.first = FirstConv(*first)
        before = zip(sizes.channels, rest, strict=False)
        self.rest = nn.ModuleList(StridedConv(channels, *size) for channels, size in before)

    def forward(self, wave_BN: Tensor, dtype: torch.dtype) -> Tensor:
        x = self.first(wave_BN, dtype)
        for layer in self.rest:
            x = layer(x)
        return x


class LogSpectrum(nn.Module):
    """Log-mel power, log constant-Q magnitudes or both side by side, roughly of mean 0 and deviation 1 on
    music: float32 (B, N) → (B, T, F) in `dtype`."""

    def __init__(self, *sizes: MelFront | CqtFront):
        super().__init__()
        self.sizes, self._made = sizes, {}

    @torch.no_grad()
    def forward(self, wave_BN: Tensor, dtype: torch.dtype) -> Tensor:
        frames = wave_BN.shape[1] // HOP_SAMPLES
        parts = [_scaled(made, wave_BN, frames) for made in self.made(str(wave_BN.device))]
        return torch.cat(parts, 2).to(dtype)

    def made(self, device: str) -> list[LogMel | ConstantQ]:
        if device not in self._made:
            self._made[device] = [_spectrum(sizes, device) for sizes in self.sizes]
        return self._made[device]


def _scaled(made: LogMel | ConstantQ, wave_BN: Tensor, frames: int) -> Tensor:
    if isinstance(made, LogMel):
        return (made(wave_BN, 0, frames) - MEL_CENTRE_DB) / MEL_SCALE_DB
    return ((made.frames(wave_BN, 0, frames) + CQT_FLOOR).log() - CQT_CENTRE) / CQT_SCALE


def _spectrum(sizes: MelFront | CqtFront, device: str) -> LogMel | ConstantQ:
    if isinstance(sizes, MelFront):
        return LogMel(RATE_HZ, HOP_SAMPLES, sizes.mels, sizes.n_fft, device)
    spec = CqtSpec(RATE_HZ, HOP_SAMPLES, sizes.fmin_hz, sizes.bins, sizes.bins_per_octave)
    return ConstantQ(spec, table_cache(), device)


def spectrum_of(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a front-end without parameters computes with: numbers by section, and its tables; for
    `own_layout`."""
    if model.front_end == "conv":
        return {}, {}
    numbers, tables = {}, {}
    for name, made in zip(model.front_sections, front_end(model).made("cpu"), strict=True):
        numbers[name], own = _told(made)
        tables |= {f"{name}.{key}": table for key, table in own.items()}
    return numbers, tables


def _told(made: LogMel | ConstantQ) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if isinstance(made, LogMel):
        numbers = {"centre": MEL_CENTRE_DB, "scale": MEL_SCALE_DB, "floor": FLOOR_POWER}
        numbers |= {"bins": made.mels, "n_fft": made.n_fft}
        return numbers, {"window": made.window, "filters": made.filters}
    numbers = {"centre": CQT_CENTRE, "scale": CQT_SCALE, "floor": CQT_FLOOR}
    numbers |= {name: getattr(made.spec, name) for name in ("bins", "block_frames", "context_frames")}
    numbers["tables"] = [(t.bins.tolist(), t.parity, t.first_row, len(t.rows)) for t in made.tables]
    return numbers, {f"table{number}": table.weights for number, table in enumerate(made.tables)}


def front_end(model: Model) -> nn.Module:
    sizes = [getattr(model, section) for section in model.front_sections]
    return ConvFrontEnd(*sizes) if model.front_end == "conv" else LogSpectrum(*sizes)
