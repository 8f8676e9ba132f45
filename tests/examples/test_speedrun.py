"""`examples/speedrun.sh`: what it runs on which machine, and, in the small, that a folder of music becomes a
model with and without Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bare import without
from tests.chaos.training import CONFIG
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "speedrun.sh"
# A python that notes what it is asked to run, has the packages in HAS and the card in GPU.
FAKE = """#!/bin/sh
case "$*" in
*find_spec*) for one in $HAS; do case "$2" in *"'$one'"*) exit 0 ;; esac; done; exit 1 ;;
*torch.cuda*) echo "$GPU" ;;
*"$FAILS"*) exit 3 ;;
*) echo "$*" >> "$CALLS" ;;
esac
"""


def speedrun(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    own = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "SEED")} | environment
    argv = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(argv, env=own, capture_output=True, text=True, timeout=400)


@pytest.fixture
def asked(tmp_path):
    """Run the script with that python; returns what it said, and the commands in their order."""

    def run(*probes: Path, has: str = "ray tensorboard", gpu: str = "", fails: str = "nothing", **more: str):
        python, calls = tmp_path / "python", tmp_path / "calls"
        python.write_text(FAKE)
        python.chmod(0o755)
        calls.write_text("")
        given = {"PYTHON": str(python), "HAS": has, "GPU": gpu, "CALLS": str(calls), "FAILS": fails}
        done = speedrun(tmp_path, tmp_path / "out", *probes, **given, **more)
        return done, calls.read_text().splitlines()

    return run


def test_two_cores_with_ray(asked, tmp_path):
    done, calls = asked()
    out = tmp_path / "out"
    assert done.returncode == 0 and calls == [
        f"-m pipeline labels configs/labels/mel_rvq.yaml --audio {tmp_path} --out {out}/labels",
        f'-m pipeline train configs/pretrain/small.yaml --set data.corpora=["{out}/labels"] '
        f'--set run.dir="{out}" --set run.name=run --set run.seed=0',
    ]
    assert "no PROBES folder was given: the model is not probed" in done.stdout
    for text in (done.stdout, (out / "speedrun.log").read_text()):
        times = [line for line in text.splitlines() if line.startswith(("labels ", "training ", "total "))]
        assert [line.split()[0] for line in times] == ["labels", "training", "total"]
        assert f"{os.cpu_count()} cores, commit " in times[-1] or "cores, commit " in times[-1]


def test_without_ray_the_same_stages_run_plain(asked):
    _, (labels, training) = asked(has="", SEED="5", TRAIN_ARGS="--set optim.updates=7")
    assert labels.endswith("/labels --plain") and training.startswith("-m stages.pretrain configs/")
    assert "--set run.seed=5 " in training
    assert training.endswith("--set watch.tensorboard=false --set optim.updates=7")


def test_on_a_gpu_the_stages_share_it_and_the_model_is_larger(asked):
    done, (labels, training) = asked(gpu="NVIDIA H100")
    assert "--set run.pools.codes.gpus=0.5 --set run.pools.cqt.gpus=0.5" in labels
    assert " configs/pretrain/ladder/22m.yaml " in training
    for setting in (
        "optim.global_batch=96",
        "engine.compile=true",
        "engine.precision=bf16",
        "optim.updates=4000",
    ):
        assert f"--set {setting} " in training + " "
    assert "  NVIDIA H100, " in done.stdout


def test_probes_follow_where_tasks_are_given(asked, tmp_path):
    done, calls = asked(tmp_path, PROBE_ARGS="--layer 3")
    assert calls[2] == f"-m pipeline probe {tmp_path}/out/run --tasks {tmp_path} --layer 3"
    assert "probes " in done.stdout and "not probed" not in done.stdout


def test_a_part_that_fails_ends_it_with_its_code(asked):
    done, calls = asked(fails="pipeline labels")
    assert done.returncode == 3 and calls == [] and "total" not in done.stdout


def test_it_says_what_it_wants():
    done = speedrun("/music")
    assert done.returncode == 2 and "MUSIC OUT [PROBES]" in done.stderr


def test_it_is_short():
    lines = SCRIPT.read_text().splitlines()
    assert len(lines) < 80 and max(map(len, lines)) <= 110


@pytest.fixture
def small(tmp_path, excerpts) -> tuple[Path, dict[str, str]]:
    """Four excerpts, a teacher without a fit, a model of seconds: and the script's environment."""
    music = tmp_path / "music"
    music.mkdir()
    for path in sorted(excerpts.iterdir())[:4]:
        (music / path.name).symlink_to(path)
    (tmp_path / "labels.yaml").write_text(
        "recipe:\n  plan: {shard_minutes: 0.4, validation_share: 0.3}\n"
        "  codes: {teacher: best_rq}\n  cqt: {}\n"
        "run: {audio: none, out: none, scan_workers: 1}\n"
    )
    training = CONFIG.format(folder=tmp_path, updates=2, precision="fp32", stage=1, workers=0)
    (tmp_path / "train.yaml").write_text(training)
    configs = {"LABELS_CONFIG": f"{tmp_path}/labels.yaml", "TRAIN_CONFIG": f"{tmp_path}/train.yaml"}
    return music, configs | {"PYTHON": sys.executable, "TRAIN_ARGS": "--set optim.warmup_updates=1"}


@pytest.mark.slow
@pytest.mark.parametrize("ray", [False, True], ids=["plain", "ray"])
def test_a_folder_of_music_becomes_a_model(small, tmp_path, ray):
    music, environment = small
    if not ray:
        environment |= without(tmp_path / "site", "ray")
    for again in (False, True)[: 1 + ray]:  # the second time nothing is left to do
        done = speedrun(music, tmp_path / "out", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"== labels: {sys.executable} -m pipeline labels" in done.stdout
        assert ("--plain" in done.stdout) != ray
        kinds = [json.loads(text)["kind"] for text in (tmp_path / "out/run/metrics.jsonl").open()]
        assert kinds.count("update") == 2, again
    assert "4 found = 4 kept" in done.stdout
    assert (tmp_path / "out" / "run" / "checkpoints" / "latest").exists()
