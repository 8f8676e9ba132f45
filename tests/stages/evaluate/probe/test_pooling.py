"""An item's mean and deviation are those of its own frames, however the file is cut into windows."""

import numpy as np
import pytest
import torch

from stages.evaluate.probe import encoders, pooling
from stages.evaluate.probe.encoders import Encoder
from stages.evaluate.probe.task import Item


def counting(hop=320, least=320, lag=0):
    """Layer 0 is the mean of each frame's samples, layer 1 twice that."""

    def hidden(wave_BN):
        count = (wave_BN.shape[1] - least) // hop + 1
        frames_BT = wave_BN.unfold(1, hop, hop)[:, :count].mean(2)
        return torch.stack([frames_BT, 2 * frames_BT], 1)[..., None]

    return Encoder("toy", "toy", ("0", "1"), hop, least, hidden)


def item(start_s, end_s):
    return Item("a.wav", start_s, end_s, "g", "0", "x")


def frames(wave_N, hop=320):
    return wave_N[: len(wave_N) // hop * hop].reshape(-1, hop).mean(1)


@pytest.mark.parametrize("hop, least", [(320, 320), (960, 960), (320, 400)])
@pytest.mark.parametrize("samples", [24_000, 24_000 * 31 + 77, 24_000 * 95])
def test_items_of_a_file(hop, least, samples):
    wave_N = np.random.default_rng(0).normal(0, 1, samples).astype(np.float32)
    end_s = samples / 24_000
    items = [item(None, None), item(0.2, 0.8), item(end_s - 0.52, end_s), item(end_s / 3, 2 * end_s / 3)]
    mean_NLD, deviation_NLD = pooling.pooled(counting(hop, least), wave_N, items)
    total = (samples - least) // hop + 1
    each = frames(wave_N, hop)[:total]
    for number, own in enumerate(items):
        first = round((own.start_s or 0) * 24_000 / hop)
        after = total if own.end_s is None else round(own.end_s * 24_000 / hop)
        part = each[first:after].astype(np.float64)
        np.testing.assert_allclose(mean_NLD[number, :, 0], [part.mean(), 2 * part.mean()], atol=1e-6)
        np.testing.assert_allclose(deviation_NLD[number, :, 0], [part.std(), 2 * part.std()], rtol=1e-4)


def test_a_file_shorter_than_a_frame_is_padded():
    mean_NLD, deviation_NLD = pooling.pooled(counting(), np.full(160, 1, np.float32), [item(None, None)])
    assert mean_NLD[0, 0, 0] == 0.5 and deviation_NLD[0, 0, 0] == 0


def test_an_item_behind_the_end_takes_the_last_frame():
    wave_N = np.arange(3200, dtype=np.float32)
    mean_NLD, _ = pooling.pooled(counting(), wave_N, [item(5.0, 6.0)])
    assert mean_NLD[0, 0, 0] == pytest.approx(frames(wave_N)[-1])


def test_frames_are_averaged_to_25_hz():
    wave_N = np.random.default_rng(1).normal(0, 1, 24_000 * 61).astype(np.float32)
    found = pooling.framed(counting(), wave_N)
    assert found.shape == (61 * 25, 2, 1) and found.dtype == np.float16
    np.testing.assert_allclose(found[:, 0, 0], frames(wave_N, 960), atol=1e-3)
    slow = pooling.framed(counting(1920, 1920), wave_N)
    assert slow.shape == (762, 2, 1)


@pytest.mark.parametrize("name", encoders.SPECTRA)
def test_spectra_have_a_frame_each_hop(name):
    encoder = encoders.spectrum(name)
    time = torch.arange(24_000) / 24_000
    hidden = encoder.hidden(torch.stack([torch.sin(2 * torch.pi * 440 * time), torch.zeros(24_000)]))
    assert hidden.shape[:3] == (2, 1, 75) and hidden.isfinite().all()
    if name == "chroma":
        assert (hidden[0, 0, 10:-10].argmax(1) == 9).all()  # A
    if name == "CQT":
        assert (hidden[0, 0, 10:-10].argmax(1) == 180).all()  # 45 quarter semitones above C1: A4
