"""Mel-RVQ: residual vector quantisation of the log-mel spectrogram, fitted on one's own corpus.

After MuQ (arXiv 2501.01108), at this project's 75 frames a second instead of their 25.

T frames, D = stack · mels input width, K codebooks, C codes each, E = dim.
Level k:  z = in_w r + in_b;  code = argmax cosine(z, codebook);  r ← r - (out_w codebook[code] + out_b)
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stages.label.base import HOP_SAMPLES, RATE_HZ, Wave
from stages.signal.mel import LogMel, mel_filters

if TYPE_CHECKING:
    import torch

# Whole tiles in a block keep every frame at the same row of every matrix product, whoever asks.
_TILE_FRAMES = 256
_BLOCK_FRAMES = 18 * _TILE_FRAMES  # 61 s
_SHAPING = ("codebooks", "codebook_size", "dim", "mels", "n_fft", "stack")  # what the weights depend on


@dataclass(frozen=True)
class MelRvq:
    """Recipe of a Mel-RVQ teacher. Construction raises ValueError on values that cannot work."""

    name: ClassVar[str] = "mel_rvq"
    version: ClassVar[int] = 1
    cpu_s: ClassVar[float] = 0.003

    codebooks: int = 8  # this and the next four: MuQ
    codebook_size: int = 1024
    dim: int = 16  # width in which codes are looked up
    mels: int = 128
    n_fft: int = 2048
    stack: int = 1  # neighbouring mel frames seen together, centred on the label frame; MuQ: 4, at 25 Hz
    steps: int = 500
    batch: int = 2048  # frames a step
    seed: int = 0
    fit_minutes: float = 30.0  # at most this much audio is read to fit

    def __post_init__(self) -> None:
        _between("codebooks", self.codebooks, 1, 64)
        _between("codebook_size", self.codebook_size, 2, 65536)  # codes are uint16
        _between("n_fft", self.n_fft, HOP_SAMPLES, 65536)
        _between("mels", self.mels, 2, self.n_fft // 2)
        _between("stack", self.stack, 1, 8)
        _between("dim", self.dim, 2, self.mels * self.stack)
        _between("steps", self.steps, 1, 10_000_000)
        _between("batch", self.batch, 1, 1_000_000)
        _between("seed", self.seed, 0, 2**63 - 1)
        if self.n_fft % 2:
            raise ValueError(f"n_fft: {self.n_fft} is odd; choose an even number, best a power of two")
        mel_filters(RATE_HZ, self.n_fft, self.mels)  # refuses bins without any frequency
        if not (math.isfinite(self.fit_minutes) and self.fit_minutes * 60 * RATE_HZ / HOP_SAMPLES >= self.min_frames):
            needed = self.min_frames * HOP_SAMPLES / RATE_HZ / 60
            raise ValueError(
                f"fit_minutes: {self.fit_minutes} is too little for codebook_size {self.codebook_size}; "
                f"give a finite number of at least {needed:.2f} or lower codebook_size"
            )

    @property
    def min_frames(self) -> int:
        """Fewest frames to fit on: with under four a code, codes would be copies of single frames."""
        return 4 * self.codebook_size

    def fit(
        self, waves: Sequence[Wave], device: str, threads: int, progress: Callable[[dict], None]
    ) -> tuple[bytes, dict]:
        """Fit all codebooks on a seeded sample of `waves`: canonical safetensors bytes, and a report.

        On the CPU the same waves in the same order, recipe and `threads` give the same bytes.
        `progress` is called about once a second with {"phase", "step", "steps", "loss", "eta_s"};
        phases are "read" (loss None), "init", "train" and "settle". The report counts frames and
        gives, per level, used codes, perplexity (fitting frames) and held-out error.

        ValueError: too little audio for the codebooks; NaN or infinite samples. `ReadError` passes.
        """
        from stages.label.teachers.mel_rvq_fit import fit_levels

        with threads_set(threads):
            tensors, report = fit_levels(self, waves, device, progress)
        return self._pack(tensors), report

    def open(self, weights: bytes | None, device: str, threads: int) -> Callable[[Wave], Iterator[np.ndarray]]:
        """The labeller yields uint16 (t, K) blocks of about a minute: floor(samples / 320) frames in all.

        A wave shorter than one frame yields nothing. ValueError: weights that are missing, damaged
        or of another recipe; NaN or infinite samples.
        """
        coder = Coder(self, self._unpack(weights), device)

        def label(wave: Wave, block_frames: int = _BLOCK_FRAMES) -> Iterator[np.ndarray]:
            total = wave.samples // HOP_SAMPLES
            for first in range(0, total, block_frames):
                with threads_set(threads):
                    codes_TK = coder.label(wave, first, min(block_frames, total - first))
                yield codes_TK

        return label

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        k, c, e, d = self.codebooks, self.codebook_size, self.dim, self.mels * self.stack
        return {
            "codebook": (k, c, e), "in_w": (k, e, d), "in_b": (k, e), "out_w": (k, d, e), "out_b": (k, d),
            "mean_db": (1,), "std_db": (1,),
        }  # fmt: skip

    def _identity(self) -> str:
        recipe = asdict(self)
        return json.dumps({"version": self.version} | {key: recipe[key] for key in _SHAPING}, sort_keys=True)

    def _pack(self, tensors: "dict[str, torch.Tensor]") -> bytes:
        from safetensors.numpy import save

        arrays = {key: np.ascontiguousarray(value.detach().cpu().numpy()) for key, value in tensors.items()}
        assert {key: a.shape for key, a in arrays.items()} == self._shapes()
        # One metadata key only: safetensors writes several in no fixed order.
        return save(arrays, metadata={self.name: self._identity()})

    def _unpack(self, weights: bytes | None) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if weights is None:
            raise ValueError(f"{self.name}: no weights were given; fit this teacher first")
        try:
            arrays = load(weights)
        except SafetensorError as error:
            raise ValueError(
                f"{self.name}: the weights ({len(weights)} bytes{_announced(weights)}) are no whole "
                f"safetensors file ({error}); fit again or copy them again"
            ) from error
        (header_bytes,) = struct.unpack("<Q", weights[:8])
        metadata = json.loads(weights[8 : 8 + header_bytes]).get("__metadata__", {})
        found, expected = metadata.get(self.name), self._identity()
        if found != expected:
            raise ValueError(
                f"{self.name}: the weights were fitted for {found}, the recipe says {expected}; "
                "fit again or restore the recipe"
            )
        for key, shape in self._shapes().items():
            seen = (arrays[key].dtype.name, arrays[key].shape) if key in arrays else "missing"
            if seen != ("float32", shape):
                raise ValueError(f"{self.name}: tensor {key} is {seen}, expected ('float32', {shape}); fit again")
            if not np.isfinite(arrays[key]).all():
                raise ValueError(f"{self.name}: tensor {key} holds NaN or infinity; fit again")
        return arrays


class Features:
    """Stacked mel of a wave: what Mel-RVQ looks at, before normalisation."""

    def __init__(self, recipe: MelRvq, device: str):
        self._log_mel = LogMel(RATE_HZ, HOP_SAMPLES, recipe.mels, recipe.n_fft, device)
        self._stack = recipe.stack

    def mel(self, wave: Wave, first_frame: int, count: int) -> "torch.Tensor":
        """float32 (count + stack - 1, mels) in dB; with an even stack centred on the frames' borders."""
        import torch

        first = first_frame * HOP_SAMPLES - (self._stack - 1) * HOP_SAMPLES // 2
        start, stop = self._log_mel.span(first, count + self._stack - 1)
        samples = torch.tensor(wave.read(start, stop), dtype=torch.float32)
        finite = torch.isfinite(samples)
        if not finite.all():
            at = start + int((~finite).nonzero()[0])
            raise ValueError(f"samples: NaN or infinity first at sample {at}; leave this recording out or mend it")
        return self._log_mel(samples[None], first - start, count + self._stack - 1)[0]

    def stacked(self, mel_TF: "torch.Tensor") -> "torch.Tensor":
        """(count + stack - 1, mels) → (count, D), oldest frame first."""
        return mel_TF.unfold(0, self._stack, 1).transpose(1, 2).flatten(1)


class Coder:
    """Names the codes of frames, with weights loaded."""

    def __init__(self, recipe: MelRvq, tensors: "dict[str, np.ndarray]", device: str):
        import torch

        weights = {key: torch.from_numpy(np.array(value)).to(device) for key, value in tensors.items()}
        self._features = Features(recipe, device)
        self._mean, self._std = weights["mean_db"], weights["std_db"]
        self._in = list(zip(weights["in_w"], weights["in_b"], strict=True))
        # A cosine's argmax does not see the length of z, so only the codes are normalised.
        self._directions = [torch.nn.functional.normalize(c, dim=1).T.contiguous() for c in weights["codebook"]]
        self._decoded = [
            codes @ out_w.T + out_b
            for codes, out_w, out_b in zip(weights["codebook"], weights["out_w"], weights["out_b"], strict=True)
        ]

    def label(self, wave: Wave, first_frame: int, count: int) -> np.ndarray:
        """uint16 (count, K)."""
        import torch

        with torch.inference_mode():
            x_TD = self._features.stacked(self._features.mel(wave, first_frame, count))
            x_TD = torch.nn.functional.pad(x_TD, (0, 0, 0, -count % _TILE_FRAMES))
            tiles = [self._tile(tile_TD) for tile_TD in x_TD.split(_TILE_FRAMES)]
            return torch.cat(tiles)[:count].cpu().numpy().astype(np.uint16)

    def _tile(self, x_TD: "torch.Tensor") -> "torch.Tensor":
        import torch

        rest_TD, codes = (x_TD - self._mean) / self._std, []
        for (in_w, in_b), directions_EC, decoded_CD in zip(self._in, self._directions, self._decoded, strict=True):
            code_T = best(torch.addmm(in_b, rest_TD, in_w.T) @ directions_EC)
            rest_TD = rest_TD - decoded_CD[code_T]
            codes.append(code_T)
        return torch.stack(codes, 1)


def best(score_TC: "torch.Tensor") -> "torch.Tensor":
    """argmax over codes, (T, C) → int64 (T,): in two strides, torch's own is ten times slower on CPUs."""
    import torch

    if score_TC.shape[1] % 32:
        return score_TC.argmax(1)
    groups_TGC = score_TC.unflatten(1, (-1, 32))
    group_T = groups_TGC.amax(2).argmax(1)
    inside_T = groups_TGC[torch.arange(len(group_T), device=group_T.device), group_T].argmax(1)
    return group_T * 32 + inside_T


class threads_set:
    """torch's own count of CPU threads, for the time of a block; the caller's comes back after it."""

    def __init__(self, threads: int):
        if threads < 1:
            raise ValueError(f"threads: {threads} is less than 1")
        self._threads = threads

    def __enter__(self) -> None:
        import torch

        self._before = torch.get_num_threads()
        torch.set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._before)


def _between(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: {value!r} is not a whole number from {low} to {high}")


def _announced(weights: bytes) -> str:
    """How long the header says the file should be, where it can be read."""
    try:
        (header_bytes,) = struct.unpack("<Q", weights[:8])
        tensors = json.loads(weights[8 : 8 + header_bytes])
        ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
        return f" of {8 + header_bytes + max(ends)} announced"
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return ""
