"""Mel-RVQ, after MuQ (arXiv 2501.01108), at this project's 75 frames a second instead of their 25.

T frames, D = stack · mels input width, K codebooks, C codes each, E = dim. Level k:

    z = in_w r + in_b;  code = argmax cosine(z, codebook);  r ← r - (out_w codebook[code] + out_b)"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from stages.config import Natural, Number, settings
from stages.label.base import LabelFunction, Wave
from stages.label.teachers import recipes
from stages.label.teachers.features import Features, best, labeller, threads_set
from stages.label.teachers.fitted_weights import LEVEL, identity, levels, pack, unpack


@settings
class MelRvq:
    """Residual vector quantisation of the log-mel spectrogram, fitted on the corpus."""

    name = "mel_rvq"
    version = 1
    cpu_s = 0.003

    codebooks: recipes.Codebooks = 8  # this and the next four: MuQ
    codebook_size: recipes.CodebookSize = 1024  # codes of a codebook
    dim: recipes.Dim = 16  # width in which codes are looked up
    mels: recipes.Mels = 128  # bands
    n_fft: recipes.Window = 2048  # samples
    # neighbouring mel frames taken together, centred on the label frame; MuQ: 4, at 25 Hz
    stack: recipes.Stack = 1
    steps: recipes.Steps = 500  # of fitting
    batch: recipes.Batch = 2048  # frames a step
    seed: Annotated[Natural, Field(le=2**63 - 1)] = 0  # of the fit
    fit_minutes: Number = 30.0  # at most this much audio is read to fit
    teacher: Literal["mel_rvq"] = "mel_rvq"

    def __post_init__(self) -> None:
        recipes.check_fitted(self)

    def fit(
        self, waves: Sequence[Wave], device: str, threads: int, progress: Callable[[dict], None]
    ) -> tuple[bytes, dict]:
        """Fit on a seeded sample of `waves`: canonical safetensors bytes, and a report.

        On the CPU the same waves in the same order, recipe and `threads` give the same bytes. `progress` is
        called about once a second with {"phase", "step", "steps", "loss", "eta_s"}; phases are "read" (loss
        None), "init", "train" and "settle". The report has counts of frames and, per level, used codes,
        perplexity (fitting frames) and errors left. ValueError: too little audio for the codebooks, or
        unreadable samples."""
        from stages.label.teachers.mel_rvq_fit import fit_levels

        with threads_set(threads):
            tensors, report = fit_levels(self, waves, device, progress)
        arrays = {key: value.detach().cpu().numpy() for key, value in tensors.items()}
        return pack(self.name, self._identity(), arrays, self._shapes()), report

    def open(self, weights: bytes | None, device: str, threads: int) -> LabelFunction:
        coder = _coder(unpack(self.name, self._identity(), weights, self._shapes()), device)
        return labeller(self.features(device), coder, threads)

    def features(self, device: str) -> Features:
        return Features(self.mels, self.n_fft, self.stack, device)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        k, c, e, d = self.codebooks, self.codebook_size, self.dim, self.mels * self.stack
        level = zip(LEVEL, ((k, c, e), (k, e, d), (k, e), (k, d, e), (k, d)), strict=True)
        return dict(level) | {"mean_db": (1,), "std_db": (1,)}

    def _identity(self) -> str:
        return identity(self, ("codebooks", "codebook_size", "dim", "mels", "n_fft", "stack"))


def _coder(tensors: dict[str, np.ndarray], device: str) -> Callable:
    """(T, D) → int64 (T, K)."""
    import torch

    weights = {key: torch.from_numpy(np.array(value)).to(device) for key, value in tensors.items()}
    ready = []
    for codes, in_w, in_b, out_w, out_b in levels(weights):
        # A cosine's argmax does not depend on the length of z, so only the codes are normalised.
        directions_EC = torch.nn.functional.normalize(codes, dim=1).T.contiguous()
        ready.append((in_w, in_b, directions_EC, codes @ out_w.T + out_b))

    def tile(x_TD):
        rest_TD, found = (x_TD - weights["mean_db"]) / weights["std_db"], []
        for in_w, in_b, directions_EC, decoded_CD in ready:
            found.append(best(torch.addmm(in_b, rest_TD, in_w.T) @ directions_EC))
            rest_TD = rest_TD - decoded_CD[found[-1]]
        return torch.stack(found, 1)

    return tile
