"""Facts of twenty updates of a small model in fp32 on seeded noise, by the real training program."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from stages.pretrain.config import load
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.state import State
from tests.chaos.training import Ranks, configured, rows
from tests.stages.pretrain import reading

UPDATES = 20
TOLERANCE = 1e-4  # relative, of losses and gradient norms: another CPU adds in another order
NUMBERS = ("loss", "ce", "cqt_error", "grad_norm")  # compared within TOLERANCE
EXACT = ("update", "epoch", "rate", "samples")
COLUMNS = {"rate": "lr"}  # the golden facts keep the name of the commit they were made at


def train(folder: Path) -> None:
    """The run, in `folder`; raises AssertionError with its output when it fails."""
    with Ranks(configured(folder, updates=UPDATES)) as ranks:
        assert ranks.wait() == 0, ranks.text()


def sample_ids(folder: Path) -> list[list[str]]:
    """KEY+START of each sample of each update, from the state alone."""
    config = load(str(configured(folder, updates=UPDATES)))
    pinned = pin(config.data)
    state, found = State(pinned.fingerprint, config.run.seed, config.optim.global_batch), []
    for _ in range(UPDATES):
        found.append(reading.sample_ids(pinned, config.data, state))
        state = state.advanced(pinned.samples_per_epoch)
    return found


def checkpoint(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the tensors in each file of the last checkpoint; the keys of its state.json."""
    place = folder / "toy" / "checkpoints"
    place = place / (place / "latest").read_text().strip()
    found: dict[str, Any] = {"state.json": sorted(json.loads((place / "state.json").read_text()))}
    for path in sorted(place.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found[path.name] = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    return found


def updates(folder: Path) -> list[dict[str, Any]]:
    return [{name: row[COLUMNS.get(name, name)] for name in (*EXACT, *NUMBERS)} for row in rows(folder)]


def facts(folder: Path) -> dict[str, Any]:
    return {
        "updates": updates(folder),
        "validation": rows(folder, "valid")[-1]["loss"],
        "sample_ids": sample_ids(folder),
        "checkpoint": checkpoint(folder),
    }
