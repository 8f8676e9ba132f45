"""Log-mel spectrogram in decibels, frame by frame: no frame depends on another.

B waves, N samples, T frames, F mel bins, W = n_fft window samples. The 128 bins and the window of 2,048
samples are those of Mel-RVQ (MuQ, arXiv 2501.01108)."""

import numpy as np

MELS = 128
N_FFT = 2048
FLOOR_POWER = 1e-10  # -100 dB: below the rounding noise of 16-bit audio, so only for true silence

# Slaney's scale (Auditory Toolbox, 1998; librosa's default): linear to 1 kHz, then logarithmic.
_LINEAR_HZ_PER_MEL = 200 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27

# Of every matrix product, whose rounding may vary with its rows: a frame must not depend on its block.
_TILE_FRAMES = 256


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """Slaney mel; float64, any shape."""
    hz = np.asarray(hz, np.float64)
    above = _KNEE_MEL + np.log(np.maximum(hz, _KNEE_HZ) / _KNEE_HZ) / _LOG_STEP
    return np.where(hz < _KNEE_HZ, hz / _LINEAR_HZ_PER_MEL, above)


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    above = _KNEE_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _KNEE_MEL) - _KNEE_MEL))
    return np.where(mel < _KNEE_MEL, mel * _LINEAR_HZ_PER_MEL, above)


def mel_filters(rate_hz: int, n_fft: int = N_FFT, mels: int = MELS) -> np.ndarray:
    """float32 (n_fft // 2 + 1, mels): triangles equally spaced in mel up to rate/2, of unit area in Hz.

    ValueError where one is too narrow to contain an FFT bin."""
    bins_hz = np.arange(n_fft // 2 + 1) * (rate_hz / n_fft)
    edges_hz = mel_to_hz(np.linspace(0.0, hz_to_mel(rate_hz / 2), mels + 2))
    low, centre, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising = (bins_hz[:, None] - low) / (centre - low)
    falling = (high - bins_hz[:, None]) / (high - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))
    empty = np.flatnonzero(filters.sum(axis=0) == 0)
    if empty.size:
        without = f"{mels} leaves {empty.size} of them without any FFT bin at n_fft {n_fft}"
        raise ValueError(f"mels: {without}; lower mels or raise n_fft")
    return filters.astype(np.float32)


def padded(wave_BN, first: int, last: int):
    """Samples first to last of a wave that is zero outside of (B, N)."""
    from torch.nn.functional import pad

    start, stop = (min(max(at, 0), wave_BN.shape[1]) for at in (first, last))
    before = min(max(start - first, 0), last - first)
    return pad(wave_BN[:, start:stop], (before, last - first - before - (stop - start)))


class LogMel:
    """10 log10 of mel power, floored at -100 dB; full scale is ±1. Hann window, and no floor relative to the
    loudest frame (librosa's top_db), by which a frame would depend on its block."""

    def __init__(
        self,
        rate_hz: int,
        hop_samples: int,
        mels: int = MELS,
        n_fft: int = N_FFT,
        device: str = "cpu",
        filters: np.ndarray | None = None,
    ):
        """filters: float32 (n_fft // 2 + 1, F), other bands than mel."""
        import torch

        if n_fft < 2 or n_fft % 2:
            raise ValueError(f"n_fft: {n_fft} is not an even number of at least 2")
        filters = mel_filters(rate_hz, n_fft, mels) if filters is None else filters
        self.hop_samples, self.n_fft, self.mels = hop_samples, n_fft, filters.shape[1]
        self.filters = torch.from_numpy(filters).to(device)
        self.window = torch.hann_window(n_fft, dtype=torch.float64).float().to(device)

    def span(self, first_sample: int, count: int) -> tuple[int, int]:
        """[start, stop) of the samples that `count` frames depend on."""
        start = first_sample + self.hop_samples // 2 - self.n_fft // 2
        return start, start + max(count - 1, 0) * self.hop_samples + self.n_fft

    def __call__(self, wave_BN, first_sample: int, count: int):
        """float32 (B, N) → float32 (B, count, F) in dB, on the device of this object.

        Frame i is centred on sample first_sample + hop·i + hop/2, the middle of its label frame; the wave is
        zero outside. One call or several give the same frames."""
        import torch

        wave_BN = wave_BN.to(self.window.device, torch.float32)
        tiles = [wave_BN.new_zeros(len(wave_BN), 0, self.mels)]
        for done in range(0, count, _TILE_FRAMES):
            first = first_sample + self.hop_samples * done
            tiles.append(self._tile(wave_BN, first, min(_TILE_FRAMES, count - done)))
        return torch.cat(tiles, 1)

    def _tile(self, wave_BN, first_sample: int, count: int):
        import torch

        piece_BN = padded(wave_BN, *self.span(first_sample, _TILE_FRAMES))
        frames_BTW = piece_BN.unfold(1, self.n_fft, self.hop_samples) * self.window
        power_BTF = torch.view_as_real(torch.fft.rfft(frames_BTW)).square().sum(-1) @ self.filters
        return power_BTF[:, :count].clamp_min(FLOOR_POWER).log10() * 10
