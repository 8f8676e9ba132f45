"""The front-ends without parameters: what a model hears through them."""

import numpy as np
import pytest
import torch

from stages.pretrain.model.config import CqtFront, MelFront, Model
from stages.pretrain.model.front_end import CQT_CENTRE, CQT_FLOOR, CQT_SCALE, front_end
from stages.signal.cqt import ConstantQ, CqtSpec


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def tone(hz: float, seconds: float = 2.0) -> torch.Tensor:
    return 0.3 * torch.sin(2 * torch.pi * hz * torch.arange(int(24_000 * seconds)) / 24_000)[None]


def test_constant_q_frames_are_the_labels_transform_of_the_crop_alone():
    front = CqtFront(bins=24, bins_per_octave=12, fmin_hz=220.0)
    wave_BN = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 24_100)).astype(np.float32))
    heard = front_end(Model(front_end="cqt", cqt=front))(wave_BN, torch.float32)
    exact = ConstantQ(CqtSpec(fmin_hz=220.0, bins=24, bins_per_octave=12)).frames(wave_BN, 0, 75)
    torch.testing.assert_close(heard, ((exact + CQT_FLOOR).log() - CQT_CENTRE) / CQT_SCALE)
    assert heard.shape == (2, 75, 24) == (2, Model(front_end="cqt").frames(24_100), front.bins)


def test_constant_q_frames_tell_low_semitones_apart_where_mels_do_not():
    low, high = tone(110.0), tone(110.0 * 2 ** (1 / 12))
    loudest = {}
    for name in ("mel", "cqt"):
        front = front_end(Model(front_end=name))
        loudest[name] = [int(front(wave, torch.float32)[0, 50:100].mean(0).argmax()) for wave in (low, high)]
    assert loudest["mel"][0] == loudest["mel"][1]
    assert loudest["cqt"][1] - loudest["cqt"][0] == 2  # bins, of 24 an octave


def test_both_spectra_stand_side_by_side_mels_first():
    wave_BN = tone(440.0)
    sizes = {"mel": MelFront(mels=40, n_fft=1024), "cqt": CqtFront(bins=24, bins_per_octave=12)}
    ends = (front_end(Model(front_end=name, **sizes)) for name in ("mel", "cqt", "mel_cqt"))
    mel, cqt, both = (end(wave_BN, torch.float32) for end in ends)
    assert torch.equal(both, torch.cat([mel, cqt], 2))
    assert Model(front_end="mel_cqt", stack=3, **sizes).front_width == 3 * 64


@pytest.mark.parametrize(
    "field, value", [("bins", 0), ("bins_per_octave", 0), ("fmin_hz", 0.0), ("bins", 300)]
)
def test_impossible_sizes_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"CqtFront\.{field} is {value}"):
        CqtFront(**{field: value})
