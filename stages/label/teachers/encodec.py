"""The EnCodec teacher: residual codes of the 24 kHz model, 8 codebooks of 1024 at 75 Hz.

MERT's acoustic teacher: 6 kbps, the whole recording in one causal pass, no loudness normalisation
(M scripts/prepare_codecs_from_manifest.py). Weights are the published ones, never trained here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stages.label.base import HOP_SAMPLES, RATE_HZ, Wave


@dataclass(frozen=True)
class Encodec:
    """Codes (T, codebooks), T = ceil(samples / 320), as `encodec`'s `EncodecModel.encode` gives them.

    A recording passes in blocks of `block_s` with all state carried over, so the block bounds
    memory (about 40 MB at 60 s) and never the codes, but for ties within float32 rounding.
    """

    name: ClassVar[str] = "encodec"
    version: ClassVar[int] = 1
    cpu_s: ClassVar[float] = 0.045
    codebooks: int = 8  # of 32: 0.75 kbps each, MERT uses 6 kbps
    codebook_size: int = 1024  # fixed by the published model
    block_s: float = 60.0  # long, for the LSTM's chunks run side by side inside a block

    def __post_init__(self) -> None:
        if not 1 <= self.codebooks <= 32:
            raise ValueError(f"encodec.codebooks: expected 1 to 32 (the model has 32), saw {self.codebooks}")
        if self.codebook_size != 1024:
            raise ValueError(f"encodec.codebook_size: expected 1024 (fixed by the model), saw {self.codebook_size}")
        if not 1.0 <= self.block_s <= 3600.0:
            raise ValueError(f"encodec.block_s: expected 1 to 3600 seconds, saw {self.block_s}")

    @property
    def block_samples(self) -> int:
        return round(self.block_s * RATE_HZ / HOP_SAMPLES) * HOP_SAMPLES

    def locate(self, path: str | None) -> bytes:
        """Canonical weights; see `encodec_weights.locate` for where they are looked for and what raises."""
        from stages.label.teachers import encodec_weights

        return encodec_weights.locate(path, self.codebooks)

    def open(self, weights: bytes, device: str, threads: int) -> Callable[[Wave], Iterator[np.ndarray]]:
        """Load once per worker; then one recording at a time, whose state the labeller carries.

        Sets torch's thread count for the process: the same count gives the same bytes.
        """
        import torch
        from safetensors.torch import load

        from stages.label.teachers.encodec_model import Encoder

        torch.set_num_threads(threads)
        tensors = {name: tensor.to(device) for name, tensor in load(weights).items()}
        encoder = Encoder(tensors, self.codebooks)

        def label(wave: Wave) -> Iterator[np.ndarray]:
            encoder.restart()
            for start in range(0, wave.samples, self.block_samples):
                yield encoder.encode(wave.read(start, min(start + self.block_samples, wave.samples)))

        return label
