"""Every experiment of `make evidence` can be run, hears as much as the others, and is in docs/evidence.md."""

from pathlib import Path

import pytest

from examples.evidence import CONFIG, EXPERIMENTS, main
from stages.pretrain.config import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_configurations(name):
    config = load(str(ROOT / CONFIG), list(EXPERIMENTS[name]))
    frames = config.model.frames(config.data.samples)
    assert 0.4 * frames < config.masking.masked_frames(frames) < 0.7 * frames
    sizes = (config.model.layers, config.model.width)
    assert sizes == ((2, 512) if config.model.front_end == "mel_cqt" or name == "cqt-front" else (6, 256))


def test_every_run_hears_the_same_number_of_crops(monkeypatch, tmp_path):
    """The commands that would be run, in order: trainings, then one probe of all."""
    called = []

    class Done:
        returncode = 0

    monkeypatch.setattr("examples.evidence.subprocess.run", lambda argv: called.append(argv) or Done)
    words = ["evidence", str(tmp_path), "--corpus", "data/x", "--tasks", "sets", "--crops", "6400"]
    monkeypatch.setattr("sys.argv", [*words, "--only", "base", "wide-batch"])
    assert main() == 0
    *trainings, probe = called
    for argv in trainings:
        config = load(str(ROOT / argv[3]), [text for text in argv[4:] if text != "--set"])
        assert config.optim.updates * config.optim.global_batch == 6400
        assert config.data.corpora == ("data/x",) and config.run.dir == str(tmp_path)
    assert [str(tmp_path / name) for name in ("base", "wide-batch")] == probe[4:6]


def test_the_page_has_every_experiment():
    text = (ROOT / "docs" / "evidence.md").read_text()
    assert [name for name in EXPERIMENTS if f"`{name}`" not in text] == []
