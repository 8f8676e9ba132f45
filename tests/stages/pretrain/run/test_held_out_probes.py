"""What a layer knows is told, and what it does not know is not; a run writes it when it is asked to."""

import numpy as np
import pytest
import torch

from stages.pretrain.run import held_out_probes
from stages.pretrain.run.held_out_probes import folded, judged, ridge_r2, same_recording


def clips(recordings=10, each=6, layers=3, width=8, seed=0):
    """Layer 0 knows nothing, layer 1 the recording, layer 2 the pitch classes."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(recordings):
        own = random.normal(0, 1, width)
        for _ in range(each):
            pitch = random.dirichlet(np.ones(12))
            x_LD = random.normal(0, 1, (layers, width + 12))
            x_LD[1, :width] = own + random.normal(0, 0.1, width)
            x_LD[1, width:] *= 0.1
            x_LD[2] = np.concatenate([random.normal(0, 0.1, width), pitch + random.normal(0, 0.01, 12)])
            rows.append((f"r{number}", x_LD.astype(np.float32), pitch))
    return rows


def test_each_layer_is_told_by_what_it_knows():
    found = judged(clips())
    assert found["clips"] == 60
    assert found["recording"][1] > 0.7 and max(found["recording"][0], found["recording"][2]) < 0.4
    assert found["chroma"][2] > 0.8 and max(found["chroma"][:2]) < 0.1


def test_the_order_of_the_clips_does_not_matter():
    rows = clips()
    first, other = judged(rows), judged(rows[30:] + rows[:30])
    for name in ("recording", "chroma"):
        np.testing.assert_allclose(first[name], other[name], atol=1e-6)


def test_a_recording_is_predicted_from_others():
    """Each recording has its own number, and its clips know which it is: that helps nobody else's."""
    random = np.random.default_rng(0)
    names = np.repeat([f"r{i}" for i in range(10)], 6)
    x_ND = np.repeat(np.eye(10), 6, axis=0) + random.normal(0, 0.01, (60, 10))
    target_NC = np.repeat(random.normal(0, 1, (10, 1)), 6, axis=0)
    assert ridge_r2(x_ND, target_NC, names) < 0.1
    assert same_recording(x_ND, names) == 1


def test_without_a_cqt_and_with_few_clips():
    rows = [(name, x_LD, None) for name, x_LD, _ in clips()]
    assert set(judged(rows)) == {"clips", "recording"}
    assert judged(rows[: held_out_probes.LEAST - 1]) is None


def test_octaves_are_folded_from_c_upwards():
    cqt_BLF = torch.zeros(2, 4, 336)
    cqt_BLF[0, :, 9 * 4 + 1] = 3.0  # A of the first octave
    cqt_BLF[0, :, 48 + 9 * 4 + 2] = 1.0  # and of the second
    cqt_BLF[0, :, 4 * 4] = 4.0  # E
    found = folded(cqt_BLF)
    assert found[0, 9] == pytest.approx(0.5) and found[0, 4] == pytest.approx(0.5)
    torch.testing.assert_close(folded(cqt_BLF.clamp_min(1e-9).log()[:1]), found[:1], rtol=1e-4, atol=1e-5)


def test_a_run_probes_its_held_out_music(quick, monkeypatch):
    monkeypatch.setattr(held_out_probes, "LEAST", 1)
    quick.train("optim.updates=5", "watch.probe_every=2", "watch.validate_every=100", "model.stack=2")
    rows = quick.rows("probe")
    assert [row["update"] for row in rows] == [2, 4]
    layers = quick.training.model.model.layers + 1
    assert all(len(row["recording"]) == len(row["chroma"]) == layers for row in rows)
    assert sum("same recording" in text for text in quick.said) == 2


def test_a_run_that_is_not_asked_does_not(quick):
    quick.train("optim.updates=2")
    assert quick.rows("probe") == []
