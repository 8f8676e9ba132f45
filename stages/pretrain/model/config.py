"""Sizes and choices of the network: the YAML section `model:`. Defaults are the 95M model's (M
config/pretrain).

`attention_relax` is accepted so that the authors' configurations read, and changes nothing here: it computes
softmax((s/α − max(s/α))·α), which is softmax(s) in exact arithmetic and guards fp16 against overflow.
`scaled_dot_product_attention` subtracts each row's maximum in fp32, which is that guard (recipe D). The
authors' fourth dropout, of "features", falls on a copy that no loss reads (F hubert.py): there is none here.
"""

from dataclasses import dataclass
from math import prod

from stages.config import require
from stages.signal.rates import HOP_SAMPLES, RATE_HZ


@dataclass(frozen=True)
class ConvFront:
    """MERT's waveform convolutions: no bias, GroupNorm of one channel a group after the first, GELU (M)."""

    channels: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)

    def __post_init__(self):
        for name in ("channels", "kernels", "strides"):
            values = getattr(self, name)
            require(
                len(values) > 0 and min(values) >= 1,
                f"model.conv.{name}",
                list(values),
                "expected whole numbers from 1",
            )
            require(
                len(values) == len(self.channels),
                f"model.conv.{name}",
                list(values),
                f"expected {len(self.channels)}, one a layer",
            )
        require(
            prod(self.strides) == HOP_SAMPLES,
            "model.conv.strides",
            list(self.strides),
            f"their product must be {HOP_SAMPLES} samples, the hop of a model frame",
        )

    @property
    def reach_samples(self) -> int:
        """Samples that one frame hears: 400."""
        reach, step = 1, 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            reach, step = reach + (kernel - 1) * step, step * stride
        return reach

    def frames(self, samples: int) -> int:
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = max(0, (samples - kernel) // stride + 1)
        return samples


@dataclass(frozen=True)
class MelFront:
    """Log-mel frames, one a label frame and centred on it: no parameters, far less arithmetic.

    A window longer than the hop lets a frame hear its neighbours: 2,048 samples (MuQ's, arXiv 2501.01108)
    reach 43 ms to each side, so that the edges of a masked span show faintly through.
    """

    mels: int = 128
    n_fft: int = 2048

    def __post_init__(self):
        require(self.mels >= 1, "model.mel.mels", self.mels, "expected 1 or more")
        require(
            self.n_fft >= HOP_SAMPLES and self.n_fft % 2 == 0,
            "model.mel.n_fft",
            self.n_fft,
            f"expected an even number from {HOP_SAMPLES}, so that no sample goes unheard",
        )

    def frames(self, samples: int) -> int:
        return samples // HOP_SAMPLES


@dataclass(frozen=True)
class CqtFront:
    """Logarithm of constant-Q magnitudes, computed from the crop: no parameters.

    For small models that are to learn pitch: one frame of 128 mels does not tell semitones apart below about
    500 Hz (docs/training.md has figures). Its lowest kernels reach 0.5 s to each side at 24 bins an octave,
    and so across a masked span, as those of the CQT that is to be predicted do (1 s).
    """

    bins: int = 168
    bins_per_octave: int = 24
    fmin_hz: float = 32.7

    def __post_init__(self):
        for name in ("bins", "bins_per_octave", "fmin_hz"):
            require(getattr(self, name) > 0, f"model.cqt.{name}", getattr(self, name), "expected above 0")
        top_hz = self.fmin_hz * 2 ** ((self.bins - 1) / self.bins_per_octave)
        require(
            top_hz < RATE_HZ / 2,
            "model.cqt.bins",
            self.bins,
            f"the last bin is at {top_hz:.0f} Hz, expected below {RATE_HZ // 2}",
        )

    def frames(self, samples: int) -> int:
        return samples // HOP_SAMPLES


@dataclass(frozen=True)
class Model:
    front_end: str = "conv"  # conv | mel | cqt
    conv: ConvFront = ConvFront()
    mel: MelFront = MelFront()
    cqt: CqtFront = CqtFront()
    layers: int = 12
    width: int = 768
    ffn: int = 3072
    heads: int = 12
    block: str = "transformer"  # transformer | conformer
    norm: str = "post"  # post (95M) | pre (330M)
    positions: str = "conv"  # conv | rotary
    # none | alibi: nearer frames weigh more, to both sides (arXiv 2108.12409), see `attention`
    attention_bias: str = "none"
    # False: masked frames are not attended to, so that what is near is what was heard
    attend_masked: bool = True
    # vector (M) | line: with the line between the nearest unmasked frames added, see `masked`
    masked_input: str = "vector"
    position_kernel: int = 128  # F wav2vec2.py; of the convolutional positions
    position_groups: int = 16
    conformer_kernel: int = 31  # frames; of a conformer's depthwise convolution (arXiv 2005.08100 uses 32)
    input_dropout: float = 0.1  # after the projection to `width`
    hidden_dropout: float = 0.1  # before the first layer and after each half of a layer
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0  # inside the feed-forward (F's default)
    layer_drop: float = 0.05
    attention_relax: float | None = None
    gradient_scale: float = 0.1  # of the front-end's gradient (M); the 330M uses 1
    # layers computed again in the backward pass: less memory, a third more work
    activation_checkpointing: bool = False

    def __post_init__(self):
        _one_of("front_end", self.front_end, "conv", "mel", "cqt")
        _one_of("block", self.block, "transformer", "conformer")
        _one_of("norm", self.norm, "post", "pre")
        _one_of("positions", self.positions, "conv", "rotary")
        _one_of("attention_bias", self.attention_bias, "none", "alibi")
        _one_of("masked_input", self.masked_input, "vector", "line")
        for name in (
            "layers",
            "width",
            "ffn",
            "heads",
            "position_kernel",
            "position_groups",
            "conformer_kernel",
        ):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "expected 1 or more")
        require(
            self.width % self.heads == 0,
            "model.heads",
            self.heads,
            f"expected a divisor of width {self.width}",
        )
        if self.positions == "conv":
            require(
                self.width % self.position_groups == 0,
                "model.position_groups",
                self.position_groups,
                f"expected a divisor of width {self.width}",
            )
        else:
            require(
                self.width // self.heads % 2 == 0,
                "model.heads",
                self.heads,
                f"rotary positions need an even width of a head, width {self.width} gives "
                f"{self.width // self.heads}",
            )
        if self.block == "conformer":
            require(
                self.norm == "pre",
                "model.norm",
                self.norm,
                "a conformer normalises before each part: expected pre",
            )
            require(
                self.conformer_kernel % 2 == 1,
                "model.conformer_kernel",
                self.conformer_kernel,
                "expected an odd number",
            )
        for name in (
            "input_dropout",
            "hidden_dropout",
            "attention_dropout",
            "activation_dropout",
            "layer_drop",
        ):
            require(
                0 <= getattr(self, name) < 1,
                f"model.{name}",
                getattr(self, name),
                "expected at least 0, below 1",
            )
        require(
            self.attention_relax is None or self.attention_relax >= 1,
            "model.attention_relax",
            self.attention_relax,
            "expected 1 or more, or nothing",
        )
        require(
            self.gradient_scale >= 0,
            "model.gradient_scale",
            self.gradient_scale,
            "expected 0 (front-end frozen) or more",
        )

    def frames(self, samples: int) -> int:
        """Model frames of a crop: 120,000 samples are 374 (conv) or 375 (mel, cqt)."""
        return getattr(self, self.front_end).frames(samples)

    def samples(self, frames: int) -> int:
        """The shortest crop of so many frames, one or more."""
        return frames * HOP_SAMPLES + (
            self.conv.reach_samples - HOP_SAMPLES if self.front_end == "conv" else 0
        )

    @property
    def front_width(self) -> int:
        """Channels that leave the front-end."""
        return {"conv": self.conv.channels[-1], "mel": self.mel.mels, "cqt": self.cqt.bins}[self.front_end]


def _one_of(name: str, value: str, *allowed: str) -> None:
    require(value in allowed, f"model.{name}", value, f"expected {' or '.join(allowed)}")
