"""A training RUN as the trainer leaves it, made by hand."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from stages.pretrain.model.objective import Objective
from tests.stages.pretrain.sizes import COLUMN, mert, small


def write_run(path: Path, objective: Objective | None = None, **choices) -> tuple[Path, object]:
    """RUN with two checkpoints, of which the second is the latest; returns the latest's model too."""
    for number, name in enumerate(("u00000001", "u00000002")):
        net = mert(small(**choices), objective, seed=number)
        folder = path / "checkpoints" / name
        folder.mkdir(parents=True)
        save_file(net.state_dict(), folder / "model.safetensors")
    (path / "checkpoints" / "latest").write_text("u00000002\n")
    (path / "checkpoints" / "best").write_text("u00000001\n")
    config = {
        "run": {"name": "attempt"},
        "model": dataclasses.asdict(net.model),
        "objective": dataclasses.asdict(net.objective),
        "optim": {"rate": 0.001},  # as runs begun before `lr` have it
        "checkpoints": {"at": None},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    data = {
        "codes": [dataclasses.asdict(COLUMN)],
        "cqt_bins": 7,
        "hours": 1.5,
        "valid_hours": 0.25,
        "fingerprint": "f00d",
    }
    (path / "data.json").write_text(json.dumps(data))
    updates = [{"kind": "update", "update": u, "loss": 50.0 - u} for u in range(1, 41)]
    rows = [{"kind": "start"}, *updates, {"kind": "valid", "update": 40, "loss": 11.5}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, net.eval()


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")
