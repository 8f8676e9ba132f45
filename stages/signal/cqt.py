"""Constant-Q transform: nnAudio's CQT1992v2 of the whole recording, at hundreds of times its speed.

B waves, N samples, F frames, K bins, L samples of one FFT, M = L / hop frames it covers, R rows.

A frame of nnAudio is |⟨wave around the frame, kernel⟩|·√length: 336 convolutions with up to 50,460 taps. Here
one FFT of a block of L samples serves all bins. Sampling a bin's output once every hop folds its spectrum:
frequency index r·M + m becomes m, so the bin is

    ifft_M( Σ_r table[m, bin, r] · spectrum[m, r] ),    with the spectrum as R rows of M,

a matrix product for each m, over many bins and blocks at once. The tables are the spectra of nnAudio's
kernels over every row where a unit sine gives more than `TAIL`. They are real: a kernel of even length is
Hermitian about its frame's centre; one of odd length is so half a sample earlier, and takes a spectrum
delayed by that much."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stages.signal.cqt_tables import MERT, CqtSpec, half_sample, load_or_build
from stages.signal.mel import padded

_BLOCKS_AT_ONCE = 8  # columns enough for the matrix product, few enough for memory
LOG_FLOOR = 1e-6  # 140 dB under a full-scale sine of the highest bin (10), the lowest of the peaks


class ConstantQ:
    """`cache_dir` keeps the tables (59 MB) of each spec."""

    def __init__(
        self, spec: CqtSpec = MERT, cache_dir: Path | None = None, device: str | torch.device = "cpu"
    ):
        self.spec, self.device, M = spec, torch.device(device), spec.block_frames
        self.tables = load_or_build(spec, cache_dir, self.device)
        self._low = -min(0, min(t.rows.start for t in self.tables))  # rows of negative frequencies
        self._high = max(t.rows.stop for t in self.tables)
        index = torch.arange(-self._low * M, self._high * M, dtype=torch.float64)
        phase = half_sample(index / (spec.hop_samples * M)).to(torch.complex64)
        self._delay = phase.view(-1, M).T.contiguous()[..., None].to(device)  # (M, R, 1)

    @torch.no_grad()
    def frames(self, wave_BN: Tensor, first_sample: int, count: int) -> Tensor:
        """float32 (B, count, bins), linear magnitude: a unit sine reads 112 in bin 0 and 10 in bin 335.

        Frame i is centred on wave position first_sample + hop·i; the wave is zero outside. Exact where
        `spec.context_samples` surround the frame's centre. Error against nnAudio in float64: 1e-6 for a
        full-scale wave, plus float32 rounding, in any autocast state. ValueError unless wave_BN is float32
        (B, N); NaN is not checked."""
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
        """(B, blocks, L): overlapping views of the wave from position `first` on."""
        spec = self.spec
        length, step = spec.block_frames * spec.hop_samples, spec.payload_frames * spec.hop_samples
        return padded(wave_BN, first, first + (blocks - 1) * step + length).unfold(1, length, step)

    def _transform(self, blocks_BJL: Tensor, out_BFK: Tensor) -> None:
        """Fill out_BFK from its J blocks; of the last block's frames, as many as it has room for."""
        spec, (waves, blocks, _) = self.spec, blocks_BJL.shape
        columns, payload = waves * blocks, min(out_BFK.shape[1], spec.payload_frames)
        kept = slice(spec.context_frames, spec.context_frames + payload)
        # In float64: the rounding of a loud tone would otherwise spread, at 1e-6, over every quiet bin.
        spectra = self._rows(torch.fft.rfft(blocks_BJL.double()).flatten(0, 1))
        magnitude_KCF = out_BFK.new_empty(spec.bins, columns, payload)
        for table in self.tables:
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
        """float32 (M, R, columns·2): the spectrum for even kernels, and half a sample later for odd ones."""
        M, low, high, columns = self.spec.block_frames, self._low, self._high, len(spectrum_CL)
        rows = torch.empty((M, low + high, columns), dtype=torch.complex64, device=spectrum_CL.device)
        rows[:, low:] = spectrum_CL[:, : high * M].view(columns, high, M).permute(2, 1, 0)
        negative = spectrum_CL[:, 1 : low * M + 1].flip(1).conj()  # a real wave's: X(-f) = X(f)*
        rows[:, :low] = negative.view(columns, low, M).permute(2, 1, 0)
        return tuple(torch.view_as_real(each).flatten(2) for each in (rows, rows * self._delay))


def log_magnitude(magnitude: Tensor) -> Tensor:
    """ln(max(magnitude, 1e-6)), any shape; silence reads -13.8."""
    return magnitude.clamp_min(LOG_FLOOR).log()


@contextlib.contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32 or bf16 matrix products."""
    before = torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(before)
