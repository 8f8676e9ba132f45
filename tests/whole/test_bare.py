"""Where nothing is installed but what docs/cluster.md lists, a model is trained, exported and used."""

import subprocess
import sys

import pytest

from tests.bare import MODEL, TRAINING, listed, only, without
from tests.chaos.training import configured, rows
from tests.conftest import ROOT
from tests.excerpt import PIECES


def train(config, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "stages.pretrain", str(config), *more]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def environment(monkeypatch):
    import os

    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def test_a_model_is_trained_exported_and_used(tmp_path, environment, run_overtone):
    config = configured(tmp_path, updates=2)
    done = train(config, environment | only(tmp_path / "training", listed(TRAINING)))
    assert done.returncode == 0 and len(rows(tmp_path)) == 2, done.stdout + done.stderr
    bare = only(tmp_path / "model", listed(MODEL))
    for arguments in (
        ("export", tmp_path / "toy", "--out", tmp_path / "hub"),
        ("features", tmp_path / "toy", PIECES[0], "--layer", "1", "--out", tmp_path / "f.safetensors"),
        ("status", tmp_path / "toy"),
    ):
        done = run_overtone(*arguments, **bare)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "f.safetensors").stat().st_size > 10_000


def test_tensorboard_is_asked_for_in_one_sentence(tmp_path, environment):
    bare = environment | without(tmp_path / "site", "tensorboard")
    done = train(configured(tmp_path, updates=2), bare, "--set", "watch.tensorboard=true")
    assert done.returncode == 2 and done.stderr.endswith(
        "overtone: watch.tensorboard is True, but tensorboard is not installed: pip install tensorboard, or "
        "set watch.tensorboard=false\n"
    )


def test_train_without_ray_names_the_other_way(labelled, tmp_path, run_overtone):
    given = ("--set", f'data.corpora=["{labelled}"]', "--set", f"run.dir={tmp_path}/runs")
    done = run_overtone(
        "train", "configs/pretrain/quickstart.yaml", *given, **without(tmp_path / "site", "ray")
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "ray is not installed" in done.stderr and "python -m stages.pretrain" in done.stderr
