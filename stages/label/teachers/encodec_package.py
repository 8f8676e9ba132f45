"""The `encodec` package as a reference: its own encoder and quantiser give tokens to compare ours with.

N samples at 24 kHz, T frames at 75 Hz, K codebooks."""

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import load

from stages.label.teachers.encodec_weights import CODES, DIMENSION, tensors


def package() -> ModuleType:
    """The imported package; ValueError with the command that installs it.

    It needs torchaudio only for files: during the import an empty module replaces one that is missing, or
    made for another torch."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    try:
        import encodec
    except ImportError as error:
        raise ValueError(
            f"the teacher encodec compares its codes with the package encodec, which cannot be imported "
            f"({error}): pip install --no-deps encodec==0.1.1 einops"
        ) from error
    finally:
        if getattr(sys.modules.get("torchaudio"), "__spec__", None) is None:
            sys.modules.pop("torchaudio", None)  # others look for the real one
    return encodec


def reference(canonical: bytes, codebooks: int) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """(name and version, its model in float32 on the CPU: float32 (N,) → int64 (T, K)) of the package."""
    encodec, weights = package(), load(canonical)
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, and replaced
        encoder = encodec.modules.SEANetEncoder(channels=1, norm="none", causal=True).eval()
        quantizer = encodec.quantization.ResidualVectorQuantizer(DIMENSION, codebooks, CODES).eval()
    places = {place.removeprefix("encoder."): weights[name] for name, (place, _) in tensors(0).items()}
    encoder.load_state_dict(places)
    for k, layer in enumerate(quantizer.vq.layers):
        layer._codebook.embed.copy_(weights[f"codebook{k}"])
        layer._codebook.inited.fill_(1)

    def encode(wave_N: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            codes_K1T = quantizer.encode(encoder(torch.tensor(wave_N)[None, None]), 75)
        return codes_K1T[:, 0].T.numpy()

    return f"encodec {encodec.__version__}", encode


def agreement(ours_TK: np.ndarray, theirs_TK: np.ndarray) -> tuple[float, int]:
    """(share of equal tokens, tokens compared).

    Of a frame not those after the first that differs: they quantise another residual, so one choice between
    two equally near codes would count up to K times."""
    differs_TK = ours_TK != theirs_TK
    compared_TK = differs_TK.cumsum(1) - differs_TK == 0
    return round(1 - float(differs_TK[compared_TK].mean()), 6), int(compared_TK.sum())
