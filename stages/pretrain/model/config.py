"""Sizes and choices of the network: the YAML section `model:`.

The authors' `attention_relax` changes nothing here: softmax((s/α − max(s/α))·α) is softmax(s) in exact
arithmetic, guarded against fp16's overflow; `scaled_dot_product_attention` subtracts each row's maximum in
fp32, too (recipe D). Their fourth dropout, of "features", falls on a copy that no loss reads (F hubert.py).
"""

from math import prod
from typing import Annotated, Literal

from pydantic import Field

from stages.config import (
    NUMBER,
    Count,
    Flag,
    NotNegative,
    OneOrMore,
    Positive,
    ShareBelow1,
    Whole,
    check,
    remedy,
    settings,
)
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

_PerLayer = Annotated[OneOrMore[Count], remedy("expected whole numbers from 1")]


@settings
class ConvFront:
    """MERT's waveform convolutions: no bias, GroupNorm of one channel a group after the first, GELU (M)."""

    channels: _PerLayer = (512,) * 7  # one a layer, as the next two
    kernels: _PerLayer = (10, 3, 3, 3, 3, 2, 2)  # samples
    strides: _PerLayer = (5, 2, 2, 2, 2, 2, 2)  # samples

    def __post_init__(self):
        layers = len(self.channels)
        for name in ("kernels", "strides"):
            check(len(getattr(self, name)) == layers, self, name, f"expected {layers}, one a layer")
        hop = f"their product must be {HOP_SAMPLES} samples, the hop of a model frame"
        check(prod(self.strides) == HOP_SAMPLES, self, "strides", hop)


@settings
class MelFront:
    """Log-mel frames, one a label frame and centred on it: no parameters, far less arithmetic.

    A window longer than the hop covers neighbours: 2,048 samples (MuQ's, arXiv 2501.01108) reach 43 ms to
    each side, so that the edges of a masked span show faintly through.
    """

    mels: Count = 128  # bands
    # samples of a window
    n_fft: Annotated[Whole, Field(ge=HOP_SAMPLES, multiple_of=2), remedy("no sample is left out")] = 2048


@settings
class CqtFront:
    """Logarithm of constant-Q magnitudes, computed from the crop: no parameters.

    For small models that are to learn pitch: one frame of 128 mels does not tell semitones apart below about
    500 Hz (docs/training.md has figures). Its lowest kernels reach 0.5 s to each side at 24 bins an octave,
    and so across a masked span, as those of the CQT that is to be predicted do (1 s).
    """

    bins: Count = 168  # in all
    bins_per_octave: Count = 24  # 12: semitones
    fmin_hz: Positive = 32.7  # centre of the lowest bin

    def __post_init__(self):
        top_hz = self.fmin_hz * 2 ** ((self.bins - 1) / self.bins_per_octave)
        lower = f"the last bin is at {top_hz:.0f} Hz, expected below {RATE_HZ // 2}"
        check(top_hz < RATE_HZ / 2, self, "bins", lower)


@settings
class Model:
    """The network. Defaults are the 95M model's (M config/pretrain)."""

    # which of the sections below; mel_cqt: both spectra side by side
    front_end: Literal["conv", "mel", "cqt", "mel_cqt"] = "conv"
    conv: ConvFront = ConvFront()
    mel: MelFront = MelFront()
    cqt: CqtFront = CqtFront()
    stack: Count = 1  # front-end frames joined into one of the model: 1 is 75 Hz, 2 is 37.5 Hz, 3 is 25 Hz
    layers: Count = 12  # of the encoder
    width: Count = 768  # of the hidden states
    ffn: Count = 3072  # width inside the feed-forward
    heads: Count = 12  # of attention; a divisor of `width`
    block: Literal["transformer", "conformer"] = "transformer"  # each layer
    norm: Literal["post", "pre"] = "post"  # LayerNorm: post (95M) | pre (330M)
    positions: Literal["conv", "rotary"] = "conv"  # how frames know their place
    # alibi: nearer frames weigh more, to both sides (arXiv 2108.12409), see `attention`
    attention_bias: Literal["none", "alibi"] = "none"
    attend_masked: Flag = True  # false: masked frames are not attended to, so that what is near is not masked
    # vector (M) | line: with the line between the nearest unmasked frames added, see `masked`
    masked_input: Literal["vector", "line"] = "vector"
    position_kernel: Count = 128  # F wav2vec2.py; of the convolutional positions
    position_groups: Count = 16  # of the convolutional positions; a divisor of `width`
    # frames, an odd number; of a conformer's depthwise convolution (arXiv 2005.08100 uses 32)
    conformer_kernel: Count = 31
    input_dropout: ShareBelow1 = 0.1  # after the projection to `width`
    hidden_dropout: ShareBelow1 = 0.1  # before the first layer and after each half of a layer
    attention_dropout: ShareBelow1 = 0.1  # of the attention's weights
    activation_dropout: ShareBelow1 = 0.0  # inside the feed-forward (F's default)
    layer_drop: ShareBelow1 = 0.05  # share of layers left out of an update
    attention_relax: Annotated[float, Field(ge=1), NUMBER] | None = None  # accepted, changes nothing
    # of the front-end's gradient (M); the 330M uses 1, 0 freezes the front-end
    gradient_scale: NotNegative = 0.1
    # layers computed again in the backward pass: less memory, a third more work
    activation_checkpointing: Flag = False

    def __post_init__(self):
        width, (head, rest) = self.width, divmod(self.width, self.heads)
        divisor = f"expected a divisor of width {width}"
        check(rest == 0, self, "heads", divisor)
        if self.positions == "conv":
            check(width % self.position_groups == 0, self, "position_groups", divisor)
        else:
            even = f"rotary positions need an even width of a head, width {width} gives {head}"
            check(head % 2 == 0, self, "heads", even)
        if self.block == "conformer":
            check(self.norm == "pre", self, "norm", "a conformer normalises before each part: expected pre")
            check(self.conformer_kernel % 2 == 1, self, "conformer_kernel", "expected an odd number")

    def frames(self, samples: int) -> int:
        """Model frames of a crop: 120,000 samples are 374 (conv) or 375 (spectra), divided by `stack`."""
        if self.front_end != "conv":
            return samples // self.hop_samples
        for kernel, stride in zip(self.conv.kernels, self.conv.strides, strict=True):
            samples = max(0, (samples - kernel) // stride + 1)
        return samples // self.stack

    def samples(self, frames: int) -> int:
        """The shortest crop of so many frames, one or more."""
        if self.front_end != "conv":
            return frames * self.hop_samples
        frames *= self.stack
        for kernel, stride in zip(self.conv.kernels[::-1], self.conv.strides[::-1], strict=True):
            frames = (frames - 1) * stride + kernel
        return frames

    @property
    def hop_samples(self) -> int:
        return self.stack * HOP_SAMPLES

    @property
    def front_width(self) -> int:
        """Values of one model frame, `stack` frames of the front-end joined."""
        width = {"conv": self.conv.channels[-1], "mel": self.mel.mels, "cqt": self.cqt.bins}
        return self.stack * sum(width[section] for section in self.front_sections)

    @property
    def front_sections(self) -> tuple[str, ...]:
        """The sections that the front-end is made by."""
        return tuple(self.front_end.split("_"))
