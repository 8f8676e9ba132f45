"""Encoders hear audio as their folders say."""

import json

import numpy as np
import pytest
import torch

from stages.evaluate.probe import cache, encoders
from stages.evaluate.probe.encoders import Heard, heard_by
from stages.evaluate.probe.task import Item, Task
from tests.stages.evaluate.conftest import write_run
from tests.stages.pretrain.sizes import mert, small


@pytest.mark.parametrize(
    "files, heard",
    [
        ({"config.json": {"model_type": "hubert"}}, Heard(16_000)),
        ({"config.json": {"sample_rate": 24_000}}, Heard(24_000)),
        (
            {"config.json": {}, "preprocessor_config.json": {"sampling_rate": 16_000, "do_normalize": True}},
            Heard(16_000, True),
        ),
    ],
)
def test_rate_and_level_are_the_folders(tmp_path, files, heard):
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert heard_by(tmp_path) == heard


def test_a_run_hears_24_khz(tmp_path):
    run, _ = write_run(tmp_path / "run")
    assert heard_by(run) == Heard()


def test_a_normalised_encoder_does_not_hear_the_level():
    net = mert(small()).eval()
    wave_BN = torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0))
    plain, level = (encoders.ours("x", net, "cpu", Heard(24_000, flag)) for flag in (False, True))
    torch.testing.assert_close(level.hidden(wave_BN), level.hidden(0.1 * wave_BN + 3), rtol=1e-3, atol=1e-3)
    assert level.identity != plain.identity != encoders.ours("x", net, "cpu", Heard(16_000)).identity


def test_audio_comes_at_the_encoders_rate():
    """A frame each 320 samples of 16 kHz: two seconds are 100 frames, not 150."""
    heard = []

    def hidden(wave_BN):
        heard.append(wave_BN.shape[1])
        return torch.zeros(1, 1, wave_BN.shape[1] // 320, 2)

    encoder = encoders.Encoder("toy", "toy", ("0",), 320, 320, hidden, 16_000)
    items = tuple(Item("a.wav", None, None, side, side, "x") for side in ("train", "valid", "test"))
    part = cache.Part(("a.wav",), ((0, 1, 2),), "p")
    cache.computed(encoder, Task("t", "class", items, "."), part, [np.zeros(48_000, np.float32)])
    assert heard == [32_000]
