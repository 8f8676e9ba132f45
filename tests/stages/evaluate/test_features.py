"""Representations of audio files: the same as the model gives for a whole recording, however long, and by the
command."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.cli import main
from pipeline.features import on_disk
from stages.evaluate import features as subject
from stages.evaluate.features import Joined, Window, batches, features, windows
from tests.stages.evaluate.conftest import write_run
from tests.stages.pretrain.sizes import mert, small


@pytest.mark.parametrize("front_end", ["conv", "mel", "cqt"])
@pytest.mark.parametrize("samples", [400, 24_000, 24_000 * 3 + 77, 100_000])
def test_windows_lose_no_frame(monkeypatch, front_end, samples):
    monkeypatch.setattr(subject, "WINDOW_FRAMES", 75)
    net = mert(small(front_end=front_end)).eval()
    wave_N = np.arange(samples, dtype=np.float32)
    found = list(windows("a", wave_N, net))
    frames = [net.model.frames(len(w.wave_N)) for w in found]
    assert sum(frames) == net.model.frames(samples)
    assert [w.wave_N[0] for w in found] == [75 * 320 * i for i in range(len(found))]
    assert [w.last for w in found] == [False] * (len(found) - 1) + [True]
    assert min(frames) >= min(37, sum(frames))


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


def test_features_wait_on_disk_not_in_memory(tmp_path):
    def held() -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])

    found, seen = {}, []
    for i in range(33):  # 8 MiB each, made by numpy: torch keeps for a while what it had
        found[str(i)] = on_disk(torch.from_numpy(np.full((2, 1 << 20), i, np.float32)), tmp_path / str(i))
        seen.append(held())
    assert seen[-1] - seen[0] < 64 << 10
    assert all(value.shape == (2, 1 << 20) and value[1, -1] == float(name) for name, value in found.items())


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
    "wrong, says", [(["--layer", "3"], "0 (the input embedding) to 2"), (["--layer", "-1"], "expected all")]
)
def test_mistakes_are_named(tmp_path, sounds, capsys, wrong, says):
    run, _ = write_run(tmp_path / "run")
    assert main(["features", str(run), str(sounds), "--out", str(tmp_path / "x.safetensors"), *wrong]) == 2
    assert says in capsys.readouterr().err
