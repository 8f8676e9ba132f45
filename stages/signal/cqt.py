"""Constant-Q transform: nnAudio's CQT1992v2 of the whole recording, at hundreds of times its speed.

B waves, N samples, F frames, K bins, L samples of one FFT, M = L / hop frames it covers, R rows.

A frame of nnAudio is |⟨wave around the frame, kernel⟩|·√length: 336 convolutions with up to 50,460
taps. Here one FFT of a block of L samples serves all bins. Sampling a bin's output once every hop
folds its spectrum: frequency index r·M + m lands on m, so the bin is

    ifft_M( Σ_r table[m, bin, r] · spectrum[m, r] ),    the spectrum seen as R rows of M.

which is a matrix product for each m, over many bins and blocks at once. The tables are the spectra of
nnAudio's own kernels over every row where a unit sine reads above `TAIL`, so quiet bins beside a loud
tone hold its leakage as nnAudio's do. Tables are real: a kernel of even length is Hermitian about its
frame's centre, one of odd length half a sample earlier, and reads a spectrum delayed by that much.

A leaf: torch, numpy, and nnAudio's kernel maker while tables are built.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.signal import tables
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

# reading of a full-scale sine below which a bin's leakage is dropped (a loud bin reads 10 to 112)
TAIL = 5e-7
_LAYOUT = 1  # of the cached tables: raise it when they change
_GROUP_BINS = 24  # neighbours share one matrix product, over the union of their rows
_BLOCKS_AT_ONCE = 8  # columns enough for the matrix product, few enough for memory
LOG_FLOOR = 1e-6  # 140 dB under a full-scale sine of the highest bin (10), the lowest of the peaks


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
            raise ValueError(
                f"bins: {self.bins} reach {top_hz:.0f} Hz, rate_hz / 2 or more; lower bins or fmin_hz"
            )

    @cached_property
    def frequencies_hz(self) -> np.ndarray:
        """float64 (bins,)."""
        return self.fmin_hz * 2.0 ** (np.arange(self.bins) / self.bins_per_octave)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (bins,): samples of each bin's kernel, constant Q."""
        quality = 1 / (2 ** (1 / self.bins_per_octave) - 1)
        return np.ceil(quality * self.rate_hz / self.frequencies_hz).astype(np.int64)

    @property
    def context_samples(self) -> int:
        """How far the longest kernel reaches to either side of a frame's centre."""
        return (int(self.lengths[0]) + 1) // 2

    @property
    def context_frames(self) -> int:
        return -(-self.context_samples // self.hop_samples)

    @property
    def block_frames(self) -> int:
        """M: a power of two of which the context takes at most a third (default 512 frames, 6.8 s)."""
        return 1 << (6 * self.context_frames - 1).bit_length()

    @property
    def payload_frames(self) -> int:
        """Frames of a block which no kernel that wraps round its ends can reach."""
        return self.block_frames - 2 * self.context_frames


@dataclass(frozen=True)
class _Table:
    """One group's weights, float32 (M, bins, rows), for rows first_row … of the spectrum (0 Hz is row 0)."""

    bins: Tensor
    parity: int
    first_row: int
    weights: Tensor

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + self.weights.shape[2])


class ConstantQ:
    """The tables on a device, and `frames`. Built once in seconds; `cache_dir` keeps them (59 MB) by
    parameters."""

    def __init__(
        self, spec: CqtSpec = CqtSpec(), cache_dir: Path | None = None, device: str | torch.device = "cpu"
    ):
        self.spec = spec
        self._tables = _load_or_build(spec, cache_dir)
        self._low = -min(0, min(t.rows.start for t in self._tables))  # rows of negative frequencies
        self._high = max(t.rows.stop for t in self._tables)
        label = torch.arange(
            -self._low * spec.block_frames, self._high * spec.block_frames, dtype=torch.float64
        )
        phase = _half_sample(label / (spec.hop_samples * spec.block_frames)).to(torch.complex64)
        self._delay = phase.view(-1, spec.block_frames).T.contiguous()[..., None]  # (M, R, 1)
        self.to(device)

    def to(self, device: str | torch.device) -> "ConstantQ":
        """Move the tables; returns self."""
        self.device = torch.device(device)
        self._delay = self._delay.to(self.device)
        self._tables = [
            replace(t, bins=t.bins.to(device), weights=t.weights.to(device)) for t in self._tables
        ]
        return self

    @torch.no_grad()
    def frames(self, wave_BN: Tensor, first_sample: int, count: int) -> Tensor:
        """float32 (B, count, bins), linear magnitude: a unit sine reads 112 in bin 0 and 10 in bin 335.

        Frame i is centred on wave position first_sample + hop·i; outside the wave is zero. Exact where
        `spec.context_samples` of the recording (or its end) surround the frame's centre. Error against
        nnAudio in float64: 1e-6 for a full-scale wave, plus float32 rounding of the frame itself,
        whatever the autocast state. ValueError unless wave_BN is float32 (B, N); NaN is the caller's to
        refuse.
        """
        if wave_BN.dtype != torch.float32:
            raise ValueError(f"wave_BN: dtype {wave_BN.dtype}, need torch.float32; convert it with .float()")
        if wave_BN.dim() != 2:
            raise ValueError(f"wave_BN: shape {tuple(wave_BN.shape)}, need (waves, samples)")
        if count < 0:
            raise ValueError(f"count: {count}, need 0 or more frames")
        out_BFK = wave_BN.new_empty(len(wave_BN), count, self.spec.bins)
        payload = self.spec.payload_frames
        with _plain_float32(self.device):
            for row in range(0, len(wave_BN), _BLOCKS_AT_ONCE):
                waves = wave_BN[row : row + _BLOCKS_AT_ONCE]
                step = payload * max(1, _BLOCKS_AT_ONCE // len(waves))
                for frame in range(0, count, step):
                    out = out_BFK[row : row + _BLOCKS_AT_ONCE, frame : frame + step]
                    first = first_sample + (frame - self.spec.context_frames) * self.spec.hop_samples
                    self._transform(self._blocks(waves, first, -(-out.shape[1] // payload)), out)
        return out_BFK

    def _blocks(self, wave_BN: Tensor, first: int, blocks: int) -> Tensor:
        """(B, blocks, L) overlapping views of the wave from position `first` on, zero outside it."""
        spec = self.spec
        length, step = spec.block_frames * spec.hop_samples, spec.payload_frames * spec.hop_samples
        last = first + (blocks - 1) * step + length
        start, stop = (min(max(at, 0), wave_BN.shape[1]) for at in (first, last))
        before = min(max(start - first, 0), last - first)
        padded = F.pad(wave_BN[:, start:stop], (before, last - first - before - (stop - start)))
        return padded.unfold(1, length, step)

    def _transform(self, blocks_BJL: Tensor, out_BFK: Tensor) -> None:
        """Fill out_BFK from its J blocks; of the last block's frames, as many as are asked for."""
        spec, (waves, blocks, _) = self.spec, blocks_BJL.shape
        columns, payload = waves * blocks, min(out_BFK.shape[1], spec.payload_frames)
        kept = slice(spec.context_frames, spec.context_frames + payload)
        # In float64: the rounding of a loud tone would otherwise spread, at 1e-6, over every quiet bin.
        spectra = self._rows(torch.fft.rfft(blocks_BJL.double()).flatten(0, 1))
        magnitude_KCF = out_BFK.new_empty(spec.bins, columns, payload)
        for table in self._tables:
            rows = slice(table.rows.start + self._low, table.rows.stop + self._low)
            folded = torch.bmm(table.weights, spectra[table.parity][:, rows])  # (M, bins, columns·2)
            folded = torch.view_as_complex(folded.unflatten(2, (columns, 2))).permute(1, 2, 0)
            value = torch.fft.ifft(folded.contiguous())[..., kept]
            power = value.real.square().addcmul_(value.imag, value.imag)
            magnitude_KCF.index_copy_(0, table.bins, power.sqrt_())
        by_frame = magnitude_KCF.unflatten(1, (waves, blocks)).permute(1, 2, 3, 0)  # (B, J, payload, K)
        for block in range(blocks):
            out = out_BFK[:, block * payload : (block + 1) * payload]
            out.copy_(by_frame[:, block, : out.shape[1]])

    def _rows(self, spectrum_CL: Tensor) -> tuple[Tensor, Tensor]:
        """The spectrum as float32 (M, R, columns·2), for even kernels, and half a sample later, for odd
        ones."""
        M, low, high, columns = self.spec.block_frames, self._low, self._high, len(spectrum_CL)
        rows = torch.empty((M, low + high, columns), dtype=torch.complex64, device=spectrum_CL.device)
        rows[:, low:] = spectrum_CL[:, : high * M].view(columns, high, M).permute(2, 1, 0)
        negative = spectrum_CL[:, 1 : low * M + 1].flip(1).conj()  # a real wave's: X(-f) = X(f)*
        rows[:, :low] = negative.view(columns, low, M).permute(2, 1, 0)
        return tuple(torch.view_as_real(each).flatten(2) for each in (rows, rows * self._delay))


def _half_sample(cycles_per_sample: Tensor) -> Tensor:
    """complex128: the phases that delay a spectrum by half a sample."""
    return torch.polar(torch.ones_like(cycles_per_sample), -torch.pi * cycles_per_sample)


def log_magnitude(magnitude: Tensor) -> Tensor:
    """ln(max(magnitude, 1e-6)): natural logarithm, any shape; silence reads -13.8."""
    return magnitude.clamp_min(LOG_FLOOR).log()


@contextlib.contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """Neither autocast nor reduced-precision (TF32, bf16) matrix products."""
    before = torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def _groups(spec: CqtSpec) -> list[tuple[int, np.ndarray]]:
    """(parity of the kernels' lengths, bins) of each table; every bin is in one of them."""
    groups = []
    for first in range(0, spec.bins, _GROUP_BINS):
        bins = np.arange(first, min(first + _GROUP_BINS, spec.bins))
        odd = spec.lengths[bins] % 2
        groups += [(parity, bins[odd == parity]) for parity in (0, 1) if (odd == parity).any()]
    return groups


def _load_or_build(spec: CqtSpec, cache_dir: Path | None) -> list[_Table]:
    if cache_dir is None:
        return _pack(spec, _build(spec))
    identity = {
        "layout": _LAYOUT,
        "tail": TAIL,
        "group": _GROUP_BINS,
        "nnAudio": version("nnAudio"),
        **asdict(spec),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path, arrays = Path(cache_dir) / f"cqt-{digest[:16]}", None
    # a home that cannot be read or written costs some seconds, not the run
    with contextlib.suppress(OSError):
        arrays = tables.read(path)
    if arrays is None:
        arrays = _build(spec)
        with contextlib.suppress(OSError):
            tables.write(path, arrays)
    return _pack(spec, arrays)


def _pack(spec: CqtSpec, arrays: Mapping[str, np.ndarray]) -> list[_Table]:
    packed = []
    for index, (parity, bins) in enumerate(_groups(spec)):
        weights = torch.from_numpy(arrays[f"weights{index}"])
        packed.append(_Table(torch.from_numpy(bins), parity, int(arrays["first_rows"][index]), weights))
    return packed


def _build(spec: CqtSpec) -> dict[str, np.ndarray]:
    """Spectra of nnAudio's kernels, computed in float64 and stored as float32."""
    from nnAudio.utils import create_cqt_kernels  # here: reading a cache needs no nnAudio

    quality = 1 / (2 ** (1 / spec.bins_per_octave) - 1)
    kernels, width, lengths, _ = create_cqt_kernels(
        quality, spec.rate_hz, spec.fmin_hz, spec.bins, spec.bins_per_octave, norm=1, window="hann"
    )
    assert np.array_equal(lengths.numpy(), spec.lengths), "nnAudio's kernel lengths"
    arrays, first_rows = {}, []
    for index, (parity, bins) in enumerate(_groups(spec)):
        weights_KRM, first_row = _weights(spec, kernels[bins], width, bins, parity)
        arrays[f"weights{index}"] = np.ascontiguousarray(weights_KRM.transpose(2, 0, 1))
        first_rows.append(first_row)
    return arrays | {"first_rows": np.asarray(first_rows)}


def _weights(
    spec: CqtSpec, kernels: np.ndarray, width: int, bins: np.ndarray, parity: int
) -> tuple[np.ndarray, int]:
    """float32 (bins, rows, M) of one group, and its first row."""
    M, hop = spec.block_frames, spec.hop_samples
    centred = torch.zeros(len(bins), hop * M, dtype=torch.complex128)
    centred[:, : width // 2] = torch.from_numpy(kernels[:, width // 2 :])
    centred[:, -(width // 2) :] = torch.from_numpy(kernels[:, : width // 2])
    gain = torch.from_numpy(np.sqrt(spec.lengths[bins]))[:, None]
    spectrum = torch.fft.fft(centred)
    if parity:  # an odd kernel is h(n + ½), h Hermitian, but for the constant phase of its carrier
        carrier = torch.from_numpy(np.pi * spec.frequencies_hz[bins] / spec.rate_hz)[:, None]
        spectrum *= torch.polar(torch.ones_like(gain), carrier)
        spectrum *= _half_sample(torch.fft.fftfreq(hop * M, dtype=torch.float64))
    rows_KRM = (spectrum.real * gain).view(len(bins), hop, M).roll(hop // 2, dims=1)
    # a unit sine reads half the gain
    heard = torch.nonzero(rows_KRM.abs().amax(dim=(0, 2)) / 2 > TAIL).flatten()
    first, last = int(heard[0]), int(heard[-1])
    return (rows_KRM[:, first : last + 1] / hop).to(torch.float32).numpy(), first - hop // 2
