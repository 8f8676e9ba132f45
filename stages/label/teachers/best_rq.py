"""BEST-RQ (arXiv 2202.01855), after MusicFM (arXiv 2311.03318).

A frozen Xavier projection of stacked, normalised mels to `dim` numbers, and the nearest of many random
directions. 75 frames a second, not MusicFM's 25; of four stacked frames each, as there.

T frames, D = stack · mels input width, E = dim, K codebooks (each with a projection of its own), C codes."""

from typing import Literal

import numpy as np

from stages.config import settings
from stages.label.base import LabelFunction
from stages.label.teachers import recipes
from stages.label.teachers.features import Features, best, labeller
from stages.signal.mel import N_FFT

# dB at mel bin u = 0 … 1 of the band, by powers of u from the highest down: mean spectrum and spread of ten
# minutes of music in examples/quickstart (D). With one mean and deviation, as MusicFM's, the common tilt of
# spectra decides most codes: a perplexity of 125 of 8,192 on that music, with these curves 777 (D).
MEAN_DB = (-125.0, 197.0, -119.0, 17.0)
STD_DB = (15.4, -7.6, 9.2)


@settings
class BestRq:
    """Codes of a random projection: nothing is fitted, nothing downloaded."""

    name = "best_rq"
    version = 1
    cpu_s = 0.004

    codebooks: recipes.Codebooks = 1  # MusicFM: 1
    codebook_size: recipes.CodebookSize = 8192  # codes; MusicFM: 8192, 4096 is usual too
    dim: recipes.Dim = 16  # width in which codes are looked up
    mels: recipes.Mels = 128  # bands
    stack: recipes.Stack = 4  # neighbouring mel frames taken together, centred on the label frame
    seed: recipes.Seed = 0  # of the projection
    teacher: Literal["best_rq"] = "best_rq"

    def __post_init__(self) -> None:
        recipes.check_bands(self, N_FFT)

    def open(self, weights: bytes | None, device: str, threads: int) -> LabelFunction:
        import torch

        if weights is not None:
            given = f"{len(weights)} bytes of weights were given"
            raise ValueError(f"{self.name}: {given}, it has none; leave run.weights away")
        curves = [np.polyval(curve, np.linspace(0.0, 1.0, self.mels)) for curve in (MEAN_DB, STD_DB)]
        mean_D, std_D = (torch.from_numpy(c).to(device, torch.float32).repeat(self.stack) for c in curves)
        books = [[torch.from_numpy(array).to(device) for array in (p, c.T.copy())] for p, c in self.tables()]

        def tile(x_TD):
            # Codes have length 1: the nearest direction has the largest product.
            z_TD = (x_TD - mean_D) / std_D
            codes = [best(z_TD @ project_DE @ directions_EC) for project_DE, directions_EC in books]
            return torch.stack(codes, 1)

        return labeller(Features(self.mels, N_FFT, self.stack, device), tile, threads)

    def tables(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per codebook: projection float32 (D, E), Xavier uniform; codes float32 (C, E), normal, of length 1.

        RandomState's stream never changes between versions or machines."""
        random, found = np.random.RandomState(self.seed), []
        width = self.mels * self.stack
        bound = np.sqrt(6 / (width + self.dim))
        for _ in range(self.codebooks):
            project_DE = random.uniform(-bound, bound, (width, self.dim))
            codes_CE = random.standard_normal((self.codebook_size, self.dim))
            codes_CE /= np.linalg.norm(codes_CE, axis=1, keepdims=True)
            found.append((project_DE.astype(np.float32), codes_CE.astype(np.float32)))
        return found
