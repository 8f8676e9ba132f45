"""The EnCodec teacher: residual codes of the 24 kHz model, 8 codebooks of 1024 at 75 Hz.

MERT's acoustic teacher: 6 kbps, the whole recording in one causal pass, no loudness normalisation
(M scripts/prepare_codecs_from_manifest.py). Weights are the published ones, never trained here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.config import NUMBER, Count, remedy, settings
from stages.label.base import Wave, read_checked
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

if TYPE_CHECKING:
    from stages.label.teachers.encodec_model import Encoder

COMPARED_S = 4.0  # of each recording's beginning, named in fp32 too where half precision was chosen


@settings
class Encodec:
    """Codes (T, codebooks), T = ceil(samples / 320), as `encodec`'s `EncodecModel.encode` gives them.

    A recording passes in blocks of `block_s` with all state carried over, so the block bounds
    memory (about 40 MB at 60 s) and never the codes, but for ties within float32 rounding.
    """

    name: ClassVar[str] = "encodec"
    version: ClassVar[int] = 1
    cpu_s: ClassVar[float] = 0.045

    # of 32: 0.75 kbps each, MERT uses 6 kbps
    codebooks: Annotated[Count, Field(le=32), remedy("the model has 32")] = 8
    # codes of a codebook
    codebook_size: Annotated[Literal[1024], remedy("fixed by the model")] = 1024
    # computed at a time; long, for the LSTM's chunks run side by side inside a block
    block_s: Annotated[float, Field(ge=1, le=3600), NUMBER] = 60.0
    # of the convolutions; bf16 and fp16 change tokens, see `Labeller.facts`
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    teacher: Literal["encodec"] = "encodec"

    later: ClassVar[tuple[str, ...]] = ("dtype",)

    @property
    def block_samples(self) -> int:
        return round(self.block_s * RATE_HZ / HOP_SAMPLES) * HOP_SAMPLES

    def locate(self, path: str | None) -> bytes:
        """Canonical weights; see `encodec_weights.locate` for where they are looked for and what raises."""
        from stages.label.teachers import encodec_weights

        return encodec_weights.locate(path, self.codebooks)

    def open(self, weights: bytes, device: str, threads: int) -> "Labeller":
        """Load once per worker; then one recording at a time, whose state the labeller carries.

        Sets torch's thread count for the process: the same count gives the same bytes. ValueError while
        labelling: a recording that cannot be heard (NaN, another rate, channels or dtype).
        """
        import torch
        from safetensors.torch import load

        from stages.label.teachers.encodec_model import Encoder

        torch.set_num_threads(threads)
        tensors = {name: tensor.to(device) for name, tensor in load(weights).items()}
        exact = Encoder(tensors, self.codebooks)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.dtype)
        return (
            Labeller(self, exact)
            if half is None
            else Labeller(self, Encoder(tensors, self.codebooks, half), exact)
        )


@dataclass
class Labeller:
    """Names a recording's codes block by block; in half precision, says how many tokens that changed."""

    teacher: Encodec
    encoder: "Encoder"
    exact: "Encoder | None" = None  # in fp32, to compare half precision with
    frames: int = 0  # compared
    equal_K: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.restart_facts()

    def __call__(self, wave: Wave) -> Iterator[np.ndarray]:
        self.encoder.restart()
        for start in range(0, wave.samples, self.teacher.block_samples):
            sound_N = read_checked(wave, start, min(start + self.teacher.block_samples, wave.samples))
            codes_TK = self.encoder.encode(sound_N)
            if self.exact is not None and start == 0:
                self._compare(sound_N, codes_TK)
            yield codes_TK

    def _compare(self, sound_N: np.ndarray, codes_TK: np.ndarray) -> None:
        frames = min(len(sound_N), round(COMPARED_S * RATE_HZ)) // HOP_SAMPLES
        if frames:
            self.exact.restart()
            exact_TK = self.exact.encode(sound_N[: frames * HOP_SAMPLES])
            self.frames += frames
            self.equal_K = self.equal_K + (exact_TK == codes_TK[:frames]).sum(0)

    def restart_facts(self) -> None:
        self.frames, self.equal_K = 0, np.zeros(self.teacher.codebooks, np.int64)

    def facts(self) -> dict[str, Any]:
        """In half precision: the share of tokens, by codebook, that equal fp32's in the seconds compared."""
        if self.exact is None:
            return {}
        shares = (self.equal_K / max(self.frames, 1)).round(6).tolist()
        return {
            "dtype": self.teacher.dtype,
            "agreement_with_fp32": {"frames": self.frames, "by_codebook": shares},
        }
