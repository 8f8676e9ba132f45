"""The EnCodec teacher, MERT's acoustic one: residual codes of the published 24 kHz model at 6 kbps.

The whole recording in one causal pass, no loudness normalisation (M scripts/prepare_codecs_from_manifest.py).
Each worker checks its codes against the `encodec` package."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.config import NUMBER, Count, remedy, settings
from stages.label.base import TeacherError, Wave, read_checked
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

COMPARED_S = 4.0  # of each recording, encoded in fp32 too where half precision was chosen
PACKAGE_S = 10.0  # of a worker's first recording, compared with the package
PACKAGE_SHARE = 0.999  # of equal tokens, at least; float32 rounding changes one in 100,000 (D)


@settings
class Encodec:
    """Codes (T, codebooks), T = ceil(samples / 320), as `encodec`'s `EncodecModel.encode` gives them.

    All state is carried from block to block: `block_s` bounds memory (about 40 MB at 60 s), and changes codes
    only in ties within float32 rounding."""

    name = "encodec"
    version = 1
    cpu_s = 0.045

    # of 32: 0.75 kbps each, MERT uses 6 kbps
    codebooks: Annotated[Count, Field(le=32), remedy("the model has 32")] = 8
    # codes of a codebook
    codebook_size: Annotated[Literal[1024], remedy("fixed by the model")] = 1024
    # computed at a time; long, for the LSTM's chunks run side by side inside a block
    block_s: Annotated[float, Field(ge=1, le=3600), NUMBER] = 60.0
    # of the convolutions; bf16 and fp16 change tokens, see `Labeller.facts`
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    teacher: Literal["encodec"] = "encodec"

    later = ("dtype",)

    def locate(self, path: str | None) -> bytes:
        """As `encodec_weights.locate`; ValueError also where the `encodec` package is missing."""
        from stages.label.teachers import encodec_package, encodec_weights

        encodec_package.package()
        return encodec_weights.locate(path, self.codebooks)

    def open(self, weights: bytes, device: str, threads: int) -> "Labeller":
        """Sets torch's thread count for the process: the same count gives the same bytes.

        Labels one recording at a time; TeacherError for other codes than the `encodec` package's."""
        import torch
        from safetensors.torch import load

        from stages.label.teachers.encodec_model import EncodecEncoder

        torch.set_num_threads(threads)
        tensors = {name: tensor.to(device) for name, tensor in load(weights).items()}
        exact = EncodecEncoder(tensors, self.codebooks)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.dtype)
        encoder = EncodecEncoder(tensors, self.codebooks, half) if half else exact
        return Labeller(self, exact, encoder, weights)


@dataclass
class Labeller:
    """Compares codes: of the worker's first recording with the package's, half precision's with float32's."""

    teacher: Encodec
    exact: Any  # `EncodecEncoder` in fp32
    encoder: Any  # in the teacher's dtype: `exact` itself, or in half precision
    weights: bytes  # for the package: its model shares no memory with ours
    frames: int = 0  # compared with fp32
    equal_K: np.ndarray = field(init=False)
    compared: dict | None = None  # with the package

    def __post_init__(self) -> None:
        self.restart_facts()

    def __call__(self, wave: Wave) -> Iterator[np.ndarray]:
        self._check_against_package(wave)
        for start, sound_N, codes_TK in self._blocks(self.encoder, wave, wave.samples):
            frames = min(len(sound_N), round(COMPARED_S * RATE_HZ)) // HOP_SAMPLES
            if self.exact is not self.encoder and start == 0 and frames:
                self.exact.restart()
                exact_TK = self.exact.encode(sound_N[: frames * HOP_SAMPLES])
                self.frames += frames
                self.equal_K += (exact_TK == codes_TK[:frames]).sum(0)
            yield codes_TK

    def _blocks(self, encoder, wave: Wave, stop: int) -> Iterator[tuple]:
        """(start, samples, codes) of each block of a recording that ends at `stop`."""
        encoder.restart()
        samples = round(self.teacher.block_s * RATE_HZ / HOP_SAMPLES) * HOP_SAMPLES
        for start in range(0, stop, samples):
            sound_N = read_checked(wave, start, min(start + samples, stop))
            yield start, sound_N, encoder.encode(sound_N)

    def _check_against_package(self, wave: Wave) -> None:
        """TeacherError, on this recording and every later one, where too many tokens differ."""
        from stages.label.teachers import encodec_package

        if self.compared is None and wave.samples:
            stop = round(PACKAGE_S * RATE_HZ)  # a shorter recording is followed by silence
            ours_TK = np.concatenate([codes_TK for *_, codes_TK in self._blocks(self.exact, wave, stop)])
            package, encode = encodec_package.reference(self.weights, self.teacher.codebooks)
            share, tokens = encodec_package.agreement(ours_TK, encode(read_checked(wave, 0, stop)))
            name = getattr(wave, "recording", "")
            self.compared = {"package": package, "share": share, "tokens": tokens, "recording": name}
        if self.compared and self.compared["share"] < PACKAGE_SHARE:
            package, share, tokens, name = self.compared.values()
            raise TeacherError(
                f"overtone's own EnCodec and the package {package} agree on {share:.2%} of {tokens} tokens "
                f"(the first {PACKAGE_S:g} s of recording {name}), expected at least {PACKAGE_SHARE:.1%}: no "
                f"codes are written. Label on another device (run.pools.codes.gpus) or machine, or install "
                f"torch again as in requirements.txt; if that does not help, report this message"
            )

    def restart_facts(self) -> None:
        self.frames, self.equal_K = 0, np.zeros(self.teacher.codebooks, np.int64)

    def facts(self) -> dict:
        """In half precision: the share of the tokens compared, by codebook, that equal fp32's."""
        if self.exact is self.encoder:
            return {}
        shares = (self.equal_K / max(self.frames, 1)).round(6).tolist()
        agreement = {"frames": self.frames, "by_codebook": shares}
        return {"dtype": self.teacher.dtype, "agreement_with_fp32": agreement}

    def run_facts(self) -> dict:
        return {"agreement_with_package": self.compared} if self.compared else {}
