"""k-means on log-mel and chroma: MERT's own first teacher (P), fitted on one's own corpus.

T frames, D features (mel bins and 12 of chroma), C codes. Each feature is standardised over the corpus; then
mel and chroma weigh the same, whatever their widths (D)."""

import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from stages.config import Number, settings
from stages.label.base import LabelFunction, Wave
from stages.label.teachers import recipes
from stages.label.teachers.features import Features, best, labeller, threads_set
from stages.label.teachers.fitted_weights import Shapes, identity, pack, unpack
from stages.signal.chroma import CLASSES, chroma_filters
from stages.signal.mel import mel_filters
from stages.signal.rates import RATE_HZ

_START_FRAMES_PER_CODE = 8  # in the first batch, from which k-means++ starts
_CHUNK_FRAMES = 8192  # looked up at once in the report


@settings
class KMeans:
    """k-means on log-mel and chroma, fitted on the corpus."""

    name = "kmeans"
    version = 1
    cpu_s = 0.004
    codebooks = 1

    codebook_size: recipes.CodebookSize = 1024  # codes of a codebook
    mels: recipes.Mels = 128  # bands
    n_fft: recipes.Window = 4096  # samples; 5.9 Hz a bin: semitones are told apart from about 200 Hz up
    steps: recipes.Steps = 500  # of fitting
    batch: recipes.Batch = 4096  # frames a step
    seed: recipes.Seed = 0  # of the fit
    fit_minutes: Number = 30.0  # at most this much audio is read to fit
    teacher: Literal["kmeans"] = "kmeans"

    def __post_init__(self) -> None:
        recipes.check_fitted(self)

    def features(self, device: str) -> Features:
        mel, chroma = mel_filters(RATE_HZ, self.n_fft, self.mels), chroma_filters(RATE_HZ, self.n_fft)
        return Features(self.mels, self.n_fft, 1, device, np.concatenate([mel, chroma], 1))

    def fit(
        self, waves: Sequence[Wave], device: str, threads: int, progress: Callable[[dict], None]
    ) -> tuple[bytes, dict]:
        """As `MelRvq.fit`, but always on the CPU, with phases "read" and "train": scikit-learn's
        MiniBatchKMeans, which moves codes of few frames. The report has the error of fitting frames too."""
        import torch
        from threadpoolctl import threadpool_limits

        from stages.label.teachers.mel_rvq_frames import read_stretches

        began = time.monotonic()
        with threads_set(threads), threadpool_limits(threads):
            generator = torch.Generator().manual_seed(self.seed)
            bands, held = read_stretches(self, self.features(device), waves, generator, progress)
            seen: tuple[list, list] = ([], [])
            for bands_TD, heldout in zip(bands, held, strict=True):
                seen[heldout].append(self._seen(bands_TD).cpu().numpy())
            fit_TD, heldout_TD = map(np.concatenate, seen)
            mean_D = fit_TD.mean(0, dtype=np.float64).astype(np.float32)
            spread_D = np.maximum(fit_TD.std(0, dtype=np.float64), 1e-2)  # a corpus of silence has none
            halves = [self.mels, CLASSES]  # features that share a half of the weight
            scale_D = (spread_D * np.sqrt(np.repeat(halves, halves))).astype(np.float32)
            fit_TD, heldout_TD = ((x_TD - mean_D) / scale_D for x_TD in (fit_TD, heldout_TD))
            codes_CD, history = self._train(fit_TD, heldout_TD, progress)
            report = _report(codes_CD, fit_TD, heldout_TD) | {"history": history}
        report["seconds"] = round(time.monotonic() - began, 1)
        arrays = {"codes": codes_CD, "mean": mean_D, "scale": scale_D}
        return pack(self.name, self._identity(), arrays, self._shapes()), report

    def open(self, weights: bytes | None, device: str, threads: int) -> LabelFunction:
        import torch

        arrays = unpack(self.name, self._identity(), weights, self._shapes())
        tensors = {key: torch.from_numpy(array.copy()).to(device) for key, array in arrays.items()}
        mean_D, scale_D, nearest = tensors["mean"], tensors["scale"], _nearest(tensors["codes"])

        def tile(bands_TD):
            return nearest((self._seen(bands_TD) - mean_D) / scale_D)[:, None]

        return labeller(self.features(device), tile, threads)

    def _seen(self, bands_TD):
        """The chroma bands relative to their frame's mean: mel has the loudness already."""
        import torch

        mel, chroma = bands_TD[:, : self.mels], bands_TD[:, self.mels :]
        return torch.cat([mel, chroma - chroma.mean(1, keepdim=True)], 1)

    def _train(
        self, fit_TD: np.ndarray, heldout_TD: np.ndarray, progress: Callable
    ) -> tuple[np.ndarray, list[dict]]:
        """float32 (C, D) centres, and held-out errors on the way."""
        from sklearn.cluster import MiniBatchKMeans

        from stages.label.teachers.mel_rvq_fit import HISTORY, HISTORY_FRAMES
        from stages.label.teachers.mel_rvq_frames import Ticker

        random = np.random.RandomState(self.seed)
        model = MiniBatchKMeans(self.codebook_size, batch_size=self.batch, random_state=random, n_init=1)
        order, ticker = random.permutation(len(fit_TD)), Ticker("train", self.steps, progress)
        history, every, variance = [], self.steps / HISTORY, _variance(fit_TD)
        model.partial_fit(fit_TD[order[: max(self.batch, _START_FRAMES_PER_CODE * self.codebook_size)]])
        for step in range(self.steps):
            if len(order) < self.batch:
                order = np.concatenate([order, random.permutation(len(fit_TD))])
            model.partial_fit(fit_TD[order[: self.batch]])
            order = order[self.batch :]
            ticker.tick(step + 1, None)
            if int((step + 1) / every) > int(step / every):
                centres_CD = model.cluster_centers_.astype(np.float32)
                error = _looked_up(centres_CD, heldout_TD[:HISTORY_FRAMES])[1] / variance
                history.append({"step": step + 1, "heldout_error": [round(error, 5)]})
        return model.cluster_centers_.astype(np.float32), history

    def _shapes(self) -> Shapes:
        width = self.mels + CLASSES
        return {"codes": (self.codebook_size, width), "mean": (width,), "scale": (width,)}

    def _identity(self) -> str:
        return identity(self, ("codebook_size", "mels", "n_fft"))


def _nearest(codes_CD) -> Callable:
    """(T, D) → int64 (T,): the nearest code, of largest x·c − |c|²/2, since |x|² is the same for all."""
    half_squares_C, codes_DC = -0.5 * codes_CD.square().sum(1), codes_CD.T.contiguous()
    return lambda x_TD: best(half_squares_C.addmm(x_TD, codes_DC))


def _looked_up(codes_CD: np.ndarray, x_TD: np.ndarray) -> tuple:
    """Codes (T,), and the mean squared distance to them."""
    import torch

    nearest = _nearest(torch.from_numpy(codes_CD))
    code_T = torch.cat([nearest(part) for part in torch.from_numpy(x_TD).split(_CHUNK_FRAMES)])
    return code_T, float(np.square(x_TD - codes_CD[code_T.numpy()]).sum(1).mean())


def _variance(fit_TD: np.ndarray) -> float:
    return float(np.square(fit_TD).sum(1).mean()) or 1.0


def _report(codes_CD: np.ndarray, fit_TD: np.ndarray, heldout_TD: np.ndarray) -> dict:
    import torch

    from stages.label.teachers.mel_rvq_fit import usage

    errors, variance = {}, _variance(fit_TD)
    for name, x_TD in {"heldout_error": heldout_TD, "fit_error": fit_TD}.items():
        code_T, error = _looked_up(codes_CD, x_TD)
        errors[name] = error / variance  # 1 is a constant frame's
    level = usage(torch.bincount(code_T, minlength=len(codes_CD))) | errors
    return {"fit_frames": len(fit_TD), "heldout_frames": len(heldout_TD), "levels": [level]}
