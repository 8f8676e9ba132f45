"""Representations of audio files: the same as the model gives for a whole recording, however long, and by the
command."""

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.cli import main
from stages.evaluate.features import Joined, Window, batches, features, windows
from tests.stages.evaluate.conftest import write_run
from tests.stages.pretrain.sizes import mert, small


@pytest.mark.parametrize("front_end", ["conv", "mel", "cqt"])
@pytest.mark.parametrize("samples", [400, 24_000, 24_000 * 3 + 77, 100_000])
def test_windows_lose_no_frame(front_end, samples):
    net = mert(small(front_end=front_end)).eval()
    wave_N = np.arange(samples, dtype=np.float32)
    found = list(windows("a", wave_N, net, 1.0))
    frames = [net.model.frames(len(w.wave_N)) for w in found]
    assert sum(frames) == net.model.frames(samples)
    assert [w.wave_N[0] for w in found] == [75 * 320 * i for i in range(len(found))]
    assert [w.last for w in found] == [False] * (len(found) - 1) + [True]
    assert min(frames) >= min(37, sum(frames))


@pytest.mark.parametrize(
    "choices", [{}, {"front_end": "mel"}, {"front_end": "mel", "stack": 3}, {"stack": 2}]
)
@pytest.mark.parametrize("samples", [24_000, 24_000 * 5 + 77])
def test_overlapping_windows_keep_every_frame_once(choices, samples):
    """And each is heard with a quarter of a second to both sides, where the recording has so much."""
    net = mert(small(**choices)).eval()
    hop = net.model.hop_samples
    wave_N = np.arange(samples, dtype=np.float32)
    found = list(windows("a", wave_N, net, 1.0, 0.5))
    kept = []
    for w in found:
        start, frames = round(w.wave_N[0] / hop), net.model.frames(len(w.wave_N))
        assert start * hop == w.wave_N[0] and 0 <= w.kept.start < w.kept.stop <= frames
        margin = min(round(0.25 * 24_000 / hop), start + w.kept.start)
        assert w.kept.start == margin and (w.last or frames - w.kept.stop == round(0.25 * 24_000 / hop))
        kept += range(start + w.kept.start, start + w.kept.stop)
    assert kept == list(range(net.model.frames(samples)))


def test_overlap_brings_features_nearer_to_those_of_the_whole():
    net = mert(small(front_end="mel", attention_bias="alibi")).eval()
    wave_N = np.random.default_rng(0).standard_normal(24_000 * 8).astype(np.float32) * 0.1
    whole = net.hidden(torch.from_numpy(wave_N)[None])[-1][0]
    off = []
    for overlap_s in (0.0, 1.0):
        joined = Joined()
        for window in windows("a", wave_N, net, 2.0, overlap_s):
            result = joined.add(window, features(net, [window], 2)[0])
        off.append((result[1] - whole).abs().mean())
    assert result[1].shape == whole.shape and off[1] < 0.7 * off[0]


def test_pooling_is_over_all_frames_alike():
    net = mert(small(front_end="mel")).eval()
    wave_N = np.random.default_rng(0).standard_normal(24_000 * 5 + 9_000).astype(np.float32) * 0.1
    found = {}
    for pool in ("none", "mean", "mean_std"):
        joined = Joined(pool)
        for window in reversed(list(windows("a", wave_N, net, 1.0))):
            result = joined.add(window, features(net, [window], None)[0])
        found[pool] = result[1]
    frames = found["none"]  # (3, T, 32)
    assert found["mean"].shape == (3, 32) and found["mean_std"].shape == (3, 64)
    expected = torch.cat([frames.mean(1), frames.std(1, correction=0)], 1)
    torch.testing.assert_close(found["mean"], expected[:, :32], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["mean_std"], expected, rtol=1e-5, atol=1e-6)


def test_too_short_is_refused():
    with pytest.raises(ValueError, match="shorter than one frame"):
        list(windows("a", np.zeros(399, np.float32), mert()))


def test_batches_hold_windows_of_one_length_and_lose_none():
    found = [Window("a", i, False, np.zeros(n, np.float32)) for i, n in enumerate((5, 5, 3, 5, 5, 3, 9))]
    groups = list(batches(found, 3))
    assert sorted(w.number for g in groups for w in g) == list(range(7))
    assert all(len({len(w.wave_N) for w in g}) == 1 and len(g) <= 3 for g in groups)


def test_batching_changes_nothing_and_windows_come_in_any_order():
    net = mert().eval()
    draw = np.random.default_rng(0)
    waves = [draw.standard_normal(8_000).astype(np.float32) * 0.1 for _ in range(3)]
    found = [Window("a", i, i == 2, w) for i, w in enumerate(waves)]
    together = features(net, found, None)
    assert together[0].shape == (3, net.model.frames(8_000), 32)
    joined = Joined()
    assert joined.add(found[2], together[2]) is None and joined.add(found[0], together[0]) is None
    name, whole = joined.add(found[1], together[1])
    alone = torch.cat([torch.stack(net.hidden(torch.from_numpy(w)[None]))[:, 0] for w in waves], 1)
    assert name == "a"
    torch.testing.assert_close(whole, alone.detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "music" / "inner"
    folder.mkdir(parents=True)
    time_s = np.arange(44_100 * 2) / 44_100
    soundfile.write(
        folder / "a.flac", np.stack([np.sin(2000 * time_s), np.cos(3000 * time_s)], 1) * 0.3, 44_100
    )
    soundfile.write(tmp_path / "music" / "b.wav", np.sin(1000 * time_s[:24_000]) * 0.3, 24_000)
    return tmp_path / "music"


@pytest.mark.parametrize("layer, shape", [("all", (3, 149, 32)), ("1", (149, 32))])
def test_the_command(tmp_path, sounds, layer, shape):
    run, net = write_run(tmp_path / "run")
    out = tmp_path / "x.safetensors"
    assert main(["features", str(run), str(sounds), "--layer", layer, "--out", str(out)]) == 0
    found = load_file(out)
    assert set(found) == {str(sounds / "inner" / "a.flac"), str(sounds / "b.wav")}
    assert found[str(sounds / "inner" / "a.flac")].shape == shape
    wave_N, _ = soundfile.read(sounds / "b.wav", dtype="float32")
    with torch.no_grad():
        expected = torch.stack(net.hidden(torch.from_numpy(wave_N)[None]))[:, 0]
    torch.testing.assert_close(
        found[str(sounds / "b.wav")], expected if layer == "all" else expected[1], rtol=1e-3, atol=1e-4
    )
    assert safe_open(out, "pt").metadata()["layer"] == layer


def test_an_exported_folder_gives_the_same(tmp_path, sounds):
    run, _ = write_run(tmp_path / "run", norm="pre")
    assert main(["export", str(run), "--out", str(tmp_path / "hf")]) == 0
    for place in ("run", "hf"):
        assert (
            main(
                [
                    "features",
                    str(tmp_path / place),
                    str(sounds / "b.wav"),
                    "--out",
                    str(tmp_path / f"{place}.safetensors"),
                ]
            )
            == 0
        )
    torch.testing.assert_close(
        load_file(tmp_path / "run.safetensors"), load_file(tmp_path / "hf.safetensors")
    )


def test_a_bad_file_is_named_and_the_others_are_done(tmp_path, sounds, capsys):
    run, _ = write_run(tmp_path / "run")
    (sounds / "c.wav").write_bytes(b"no music")
    assert (
        main(["features", str(run), str(sounds), "--layer", "0", "--out", str(tmp_path / "x.safetensors")])
        == 1
    )
    assert len(load_file(tmp_path / "x.safetensors")) == 2
    assert "c.wav" in capsys.readouterr().err
    assert main(["features", str(run), str(sounds / "c.wav"), "--out", str(tmp_path / "y.safetensors")]) == 2


@pytest.mark.parametrize(
    "wrong, says",
    [
        (["--layer", "3"], "0 (the input embedding) to 2"),
        (["--layer", "-1"], "expected all"),
        (["--pool", "max"], "pool is 'max': expected none, mean, mean_std"),
        (["--dtype", "int8"], "expected fp32, fp16"),
        (["--window-s", "2", "--overlap-s", "2"], "overlap_s is 2.0: expected from 0 to below window_s, 2"),
        (["--out", "x.csv"], "expected .safetensors or .parquet at its end, or a folder's name and /"),
        (["--processes", "0"], "processes"),
    ],
)
def test_mistakes_are_named(tmp_path, sounds, capsys, wrong, says):
    run, _ = write_run(tmp_path / "run")
    assert main(["features", str(run), str(sounds), "--out", str(tmp_path / "x.safetensors"), *wrong]) == 2
    assert says in capsys.readouterr().err
