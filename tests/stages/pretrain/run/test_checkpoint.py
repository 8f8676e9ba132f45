"""Checkpoints: atomic, rotated, checked when read, local and on S3; a watchdog that ends what hangs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.pretrain.run.checkpoint import Checkpoints
from stages.pretrain.run.engine import Engine
from stages.pretrain.run.settings import EngineSettings, Optim
from stages.pretrain.run.watchdog import EXIT_CODE
from stages.pretrain.run.world import joined
from tests import ranks
from tests.conftest import ROOT
from tests.object_store import served
from tests.stages.pretrain import toy, updating

OPTIM = Optim(updates=10, warmup_updates=2, lr=2e-3, global_batch=toy.GLOBAL, clip_norm=1.0)


def update(engine: Engine, number: int) -> float:
    batch = toy.global_batch(number)
    frames, draw = int(batch.mask_BT.sum()), engine.model.draw(0, number)
    return float(updating.update(engine, [batch], frames, 1e-3, draw).sums["loss"])


def refused(action, *arguments) -> str:
    try:
        action(*arguments)
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def at(place: str, folder: Path) -> dict:
    """Save four, keep two and the best, go back, go on; then a damaged file and another model."""
    with joined(60) as world:
        engine = Engine(toy.model(dropout=0.1), EngineSettings(precision="fp32"), OPTIM, world, 1)
        checkpoints = Checkpoints(place, 2, world)
        for number in range(1, 5):
            update(engine, number)
            checkpoints.save(engine, {"update": number, "best_update": 1, "note": "kept"})
        checkpoints.finish()
        after = [update(engine, number) for number in (5, 6)]
        found = {
            "names": checkpoints.names(),
            "newest": checkpoints.newest(),
            "after": after,
            "state": checkpoints.restore(engine, "u00000004"),
            "again": [update(engine, number) for number in (5, 6)],
        }
        other = Engine(toy.model(seed=1), EngineSettings(precision="fp32", zero_stage=0), OPTIM, world, 1)
        other.model.mask_vector.data = torch.zeros(7)
        found["other"] = refused(checkpoints.restore, other, "u00000004")
        name = "u00000004/optimizer.safetensors"
        data = bytearray(checkpoints.storage.read(name))
        data[-1] ^= 1
        checkpoints.storage.write(name, bytes(data))
        found["damaged"] = refused(checkpoints.restore, engine, "u00000004")
        checkpoints.storage.write("u00000009/model.safetensors", b"half")  # died before state.json
        found["half"] = checkpoints.newest()
        return found


def local(folder: Path) -> None:
    torch.save(at(str(folder / "place"), folder), folder / "found.pt")


def on_s3(folder: Path) -> None:
    with served("bucket"):
        torch.save(at("s3://bucket/runs/mine", folder), folder / "found.pt")


@pytest.mark.parametrize("function", ["local", "on_s3"])
def test_saved_kept_restored_and_checked(tmp_path, function):
    ranks.run(f"tests.stages.pretrain.run.test_checkpoint:{function}", tmp_path, 1)
    found = torch.load(tmp_path / "found.pt")
    assert (
        found["names"] == ["u00000001", "u00000003", "u00000004"]
        and found["newest"] == found["half"] == "u00000004"
    )
    assert found["state"]["note"] == "kept" and found["state"]["steps"] == 4
    assert found["again"] == found["after"]
    assert "mask_vector is (32,), this model's is (7,): the model changed" in found["other"]
    assert (
        "optimizer.safetensors: its sha256 is not the one noted" in found["damaged"]
        and "remove the folder u00000004" in found["damaged"]
    )
    if function == "local":
        assert json.loads((tmp_path / "place" / "u00000003" / "state.json").read_text())["update"] == 3
        assert (tmp_path / "place" / "latest").read_text() == "u00000004\n"
        assert not list((tmp_path / "place").glob(".attempt*"))


def test_a_rank_without_progress_writes_its_stacks_and_ends(tmp_path):
    code = (
        "import threading, sys; from pathlib import Path; from stages.pretrain.run.watchdog import Watchdog\n"
        "def stuck_in_an_exchange(): threading.Event().wait()\n"
        "Watchdog(Path(sys.argv[1]), 3, 0.3); stuck_in_an_exchange()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == EXIT_CODE and "no progress for" in done.stdout
    assert "stuck_in_an_exchange" in (tmp_path / "rank-3.txt").read_text()
