"""Log-mel: the filters' known properties, the frames' places, and independence of blocks."""

import numpy as np
import pytest
import torch

from stages.signal.mel import LogMel, hz_to_mel, mel_filters, mel_to_hz

pytestmark = pytest.mark.usefixtures("one_thread")

RATE_HZ, HOP = 24_000, 320


def test_slaney_scale_is_linear_to_1_khz_and_logarithmic_above():
    assert hz_to_mel(200) == pytest.approx(3)
    assert hz_to_mel(1000) == pytest.approx(15)
    assert hz_to_mel(6400) == pytest.approx(15 + 27)
    hz = np.linspace(0, 12_000, 500)
    assert np.allclose(mel_to_hz(hz_to_mel(hz)), hz)


def test_filters_are_triangles_of_unit_area_that_cover_the_spectrum():
    filters = mel_filters(RATE_HZ)
    assert filters.shape == (1025, 128) and filters.dtype == np.float32
    assert (filters >= 0).all() and (filters.max(axis=0) > 0).all()
    assert np.allclose(filters.sum(axis=0) * RATE_HZ / 2048, 1, atol=0.12)  # narrow ones meet few FFT bins
    assert (filters[1:-1].sum(axis=1) > 0).all()
    assert ((filters > 0).sum(axis=1) <= 2).all()  # a frequency lies in at most two triangles


def test_more_mels_than_the_fft_resolves_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="mels: 128 .* n_fft 256; lower mels or raise n_fft"):
        mel_filters(RATE_HZ, 256, 128)
    with pytest.raises(ValueError, match="n_fft: 2047"):
        LogMel(RATE_HZ, HOP, n_fft=2047)


@pytest.mark.parametrize("hz", [100, 440, 3000, 9000])
def test_a_sine_is_loudest_in_its_own_bin_and_20_db_is_a_factor_of_ten(hz):
    wave = torch.sin(2 * torch.pi * hz * torch.arange(9600, dtype=torch.float64) / RATE_HZ).float()[None]
    mel = LogMel(RATE_HZ, HOP)
    loud, soft = mel(wave, 0, 30)[0, 10:20], mel(wave / 10, 0, 30)[0, 10:20]
    centres_hz = mel_to_hz(np.linspace(0, hz_to_mel(12_000), 130))[1:-1]
    bins = loud.argmax(1)
    assert (np.abs(hz_to_mel(centres_hz[bins]) - hz_to_mel(hz)) < 0.4).all()
    peak = torch.arange(10), bins
    assert torch.allclose(loud[peak] - soft[peak], torch.tensor(20.0), atol=1e-3)


def test_equals_a_direct_transcription_in_float64():
    rng = np.random.default_rng(0)
    wave = rng.standard_normal(5000) * 0.1
    padded = np.concatenate([np.zeros(2000), wave, np.zeros(4000)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    expected = []
    for i in range(20):
        centre = 2000 - 640 + 320 * i + 160
        power = np.abs(np.fft.rfft(padded[centre - 1024 : centre + 1024] * window)) ** 2
        expected.append(10 * np.log10(np.maximum(power @ mel_filters(RATE_HZ).astype(np.float64), 1e-10)))
    got = LogMel(RATE_HZ, HOP)(torch.tensor(wave, dtype=torch.float32)[None], -640, 20)[0]
    assert np.abs(got.numpy() - expected).max() < 2e-3


def test_a_click_is_seen_equally_from_both_sides_of_its_label_frame():
    wave = torch.zeros(1, 20 * HOP)
    wave[0, 10 * HOP + HOP // 2] = 1.0
    energy = LogMel(RATE_HZ, HOP)(wave, 0, 20)[0].mean(1)
    assert energy.argmax() == 10
    assert torch.allclose(energy[7:10], energy[11:14].flip(0), atol=1e-3)


@pytest.mark.parametrize("block", [17, 255, 256, 257])
def test_blocks_show_no_seam(block):
    wave = torch.randn(2, 300 * HOP, generator=torch.Generator().manual_seed(0)) * 0.1
    mel = LogMel(RATE_HZ, HOP)
    whole = mel(wave, 0, 300)
    parts = [mel(wave, HOP * i, min(block, 300 - i)) for i in range(0, 300, block)]
    assert whole.shape == (2, 300, 128)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)


def test_span_is_every_sample_that_is_looked_at():
    wave = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0))
    mel = LogMel(RATE_HZ, HOP)
    start, stop = mel.span(20_000, 3)
    only = torch.zeros_like(wave)
    only[:, start:stop] = wave[:, start:stop]
    assert torch.equal(mel(only, 20_000, 3), mel(wave, 20_000, 3))
    assert torch.equal(mel(wave[:, start:stop], 20_000 - start, 3), mel(wave, 20_000, 3))


def test_silence_and_outside_read_the_floor():
    mel = LogMel(RATE_HZ, HOP)
    assert (mel(torch.zeros(1, 4000), 0, 12) == -100).all()
    assert (mel(torch.ones(1, 4000), 100_000, 3) == -100).all()
    assert (mel(torch.ones(1, 4000), -100_000, 3) == -100).all()
    assert mel(torch.zeros(1, 4000), 0, 0).shape == (1, 0, 128)
