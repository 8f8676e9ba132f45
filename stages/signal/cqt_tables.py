"""What a constant-Q transform computes, and the tables it computes with: spectra of nnAudio's kernels.

K bins, M frames of one FFT block, R rows of its spectrum (see `cqt`)."""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.signal import tables
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

TAIL = 5e-7  # a full-scale sine's magnitude below which leakage is dropped (in its own bin it is 10 to 112)
_LAYOUT = 1  # of the cached tables: raise it when they change
_GROUP_BINS = 24  # neighbours share one matrix product, over the union of their rows


@dataclass(frozen=True)
class CqtSpec:
    """What is computed; MERT's values (M scripts and model configs). ValueError names a bad field."""

    rate_hz: int = RATE_HZ
    hop_samples: int = HOP_SAMPLES
    fmin_hz: float = 32.7
    bins: int = 336
    bins_per_octave: int = 48

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}: {value} must be above 0")
        if self.hop_samples % 2:
            raise ValueError(f"hop_samples: {self.hop_samples} is odd; choose an even hop")
        top_hz = self.frequencies_hz[-1]
        if top_hz >= self.rate_hz / 2:
            reach = f"{self.bins} reach {top_hz:.0f} Hz, rate_hz / 2 or more"
            raise ValueError(f"bins: {reach}; lower bins or fmin_hz")

    @cached_property
    def frequencies_hz(self) -> np.ndarray:
        """float64 (bins,)."""
        return self.fmin_hz * 2.0 ** (np.arange(self.bins) / self.bins_per_octave)

    @property
    def quality(self) -> float:
        return 1 / (2 ** (1 / self.bins_per_octave) - 1)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (bins,): samples of each bin's kernel, constant Q."""
        return np.ceil(self.quality * self.rate_hz / self.frequencies_hz).astype(np.int64)

    @property
    def context_samples(self) -> int:
        """How far the longest kernel reaches to either side of a frame's centre."""
        return (int(self.lengths[0]) + 1) // 2

    @property
    def context_frames(self) -> int:
        return -(-self.context_samples // self.hop_samples)

    @property
    def block_frames(self) -> int:
        """M: a power of two of which the context takes at most a third (default 512)."""
        return 1 << (6 * self.context_frames - 1).bit_length()

    @property
    def payload_frames(self) -> int:
        """Frames of a block that no kernel wrapping round its ends reaches."""
        return self.block_frames - 2 * self.context_frames


MERT = CqtSpec()


@dataclass(frozen=True)
class FftTable:
    """float32 weights (M, bins, rows) of one group, for rows first_row … of the spectrum (0 Hz is row 0)."""

    bins: Tensor
    parity: int  # of the kernels' lengths
    first_row: int
    weights: Tensor

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + self.weights.shape[2])


def load_or_build(spec: CqtSpec, cache_dir: Path | None, device: torch.device) -> list[FftTable]:
    """All groups' tables, from `cache_dir` where it has them, else built in seconds and kept there."""
    identity = {"layout": _LAYOUT, "tail": TAIL, "group": _GROUP_BINS, "nnAudio": version("nnAudio")}
    text = json.dumps(identity | asdict(spec), sort_keys=True)
    path = Path(cache_dir or "") / f"cqt-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    arrays = None
    with contextlib.suppress(OSError):  # a home that cannot be read or written costs seconds, not the run
        arrays = tables.read(path) if cache_dir else None
    if arrays is None:
        arrays = _build(spec)
        with contextlib.suppress(OSError):
            if cache_dir:
                tables.write(path, arrays)
    found = []
    for index, (parity, bins) in enumerate(_groups(spec)):
        bins, weights = (torch.from_numpy(each).to(device) for each in (bins, arrays[f"weights{index}"]))
        found.append(FftTable(bins, parity, int(arrays["first_rows"][index]), weights))
    return found


def _groups(spec: CqtSpec) -> list[tuple[int, np.ndarray]]:
    """(parity of the kernels' lengths, bins) of each table."""
    groups = []
    for first in range(0, spec.bins, _GROUP_BINS):
        bins = np.arange(first, min(first + _GROUP_BINS, spec.bins))
        odd = spec.lengths[bins] % 2
        groups += [(parity, bins[odd == parity]) for parity in (0, 1) if (odd == parity).any()]
    return groups


def _build(spec: CqtSpec) -> dict[str, np.ndarray]:
    """Spectra of nnAudio's kernels, computed in float64 and stored as float32."""
    from nnAudio.utils import create_cqt_kernels  # here: reading a cache needs no nnAudio

    kernels, width, lengths, _ = create_cqt_kernels(
        spec.quality, spec.rate_hz, spec.fmin_hz, spec.bins, spec.bins_per_octave, norm=1, window="hann"
    )
    assert np.array_equal(lengths.numpy(), spec.lengths), "nnAudio's kernel lengths"
    M, hop, half, arrays, first_rows = spec.block_frames, spec.hop_samples, width // 2, {}, []
    for index, (parity, bins) in enumerate(_groups(spec)):
        own = torch.from_numpy(kernels[bins])
        centred = torch.zeros(len(bins), hop * M, dtype=torch.complex128)
        centred[:, :half], centred[:, -half:] = own[:, half:], own[:, :half]
        gain = torch.from_numpy(np.sqrt(spec.lengths[bins]))[:, None]
        spectrum = torch.fft.fft(centred)
        if parity:  # an odd kernel is h(n + ½), h Hermitian, but for the constant phase of its carrier
            carrier = torch.from_numpy(np.pi * spec.frequencies_hz[bins] / spec.rate_hz)[:, None]
            spectrum *= torch.polar(torch.ones_like(gain), carrier)
            spectrum *= half_sample(torch.fft.fftfreq(hop * M, dtype=torch.float64))
        rows_KRM = (spectrum.real * gain).view(len(bins), hop, M).roll(hop // 2, dims=1)
        used = torch.nonzero(
            rows_KRM.abs().amax(dim=(0, 2)) / 2 > TAIL
        ).flatten()  # a unit sine: half the gain
        first, last = int(used[0]), int(used[-1])
        weights_KRM = (rows_KRM[:, first : last + 1] / hop).float()
        arrays[f"weights{index}"] = weights_KRM.permute(2, 0, 1).contiguous().numpy()
        first_rows.append(first - hop // 2)
    return arrays | {"first_rows": np.asarray(first_rows)}


def half_sample(cycles_per_sample: Tensor) -> Tensor:
    """complex128 phases that delay a spectrum by half a sample."""
    return torch.polar(torch.ones_like(cycles_per_sample), -torch.pi * cycles_per_sample)
