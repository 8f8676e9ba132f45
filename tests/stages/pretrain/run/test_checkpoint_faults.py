"""Checkpoints while the disk fails or the process is killed, at every single step: the newest that is listed
can always be restored."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.pretrain.run.checkpoint import FILES, Checkpoints
from stages.pretrain.run.engine import MOMENTS
from stages.pretrain.run.loss_scale import LossScale
from stages.pretrain.run.world import World
from stages.shards import objects
from stages.shards.storage import ATTEMPT, Storage

ALONE = World(0, 1, 0, torch.device("cpu"))
KEEP, BEFORE = 2, 3  # checkpoints kept; updates saved before anything fails
RMTREE = shutil.rmtree
BEST = {1: 1, 2: 2, 3: 2, 4: 2, 5: 5, 6: 5}  # update → the best so far, as a run would have it


class Held:
    """What a checkpoint asks of an engine, with values that tell the update."""

    def __init__(self):
        self.model, self.loss_scale, self.steps = nn.Linear(3, 2), LossScale(True), 0

    def gathered(self) -> dict[str, torch.Tensor]:
        names = [name for name, _ in self.model.named_parameters()]
        return {
            f"{kind}{name}": torch.full(self.model.get_parameter(name).shape, float(self.steps + i))
            for name in names
            for i, kind in enumerate(("", *(f"{m}." for m in MOMENTS)))
        }

    def restore(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        self.restored, self.steps = tensors, steps


@pytest.fixture(scope="module", autouse=True)
def store():
    """Objects are files of a folder, which need no folders to be made."""

    def upload(address: str, path: Path) -> None:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "upload", upload)
        patch.setattr(objects, "delete", lambda address: Path(address).unlink(missing_ok=True))
        yield


def opened(place: Path, local: bool) -> Checkpoints:
    found = Checkpoints(str(place), KEEP, ALONE)
    if not local:
        found.storage.is_local = False
    return found


def saved(checkpoints: Checkpoints, update: int) -> None:
    engine = Held()
    engine.steps = update
    engine.loss_scale.value = float(update)
    checkpoints.save(engine, {"update": update, "best_update": BEST[update]}, wait=True)


class Killed(BaseException):
    """Nothing of the process lives on: every later step fails too."""


class Fault:
    """Lets `after` steps happen, then raises `error` at the next: a full disk once, a kill at every step from
    there on."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int, error: type[BaseException]):
        self.left, self.error, self.happened = after, error, False
        for owner, name in (
            (Storage, "write"),
            (Storage, "delete"),
            (os, "rename"),
            (shutil, "rmtree"),
            (Path, "rmdir"),
        ):
            patch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, action):
        def step(*arguments, **options):
            self.left -= 1
            if self.left >= 0 or (self.happened and self.error is OSError):
                return action(*arguments, **options)
            if not self.happened and action is RMTREE:  # half of the folder is gone
                for part in FILES:
                    (Path(arguments[0]) / f"{part}.safetensors").unlink(missing_ok=True)
            self.happened = True
            if options.get("ignore_errors") and self.error is OSError:
                return None
            raise self.error("injected")

        return step


def interrupted(place: Path, local: bool, after: int, error: type[BaseException], updates: range) -> bool:
    """Save these updates until the fault happens; False when there were fewer steps than that."""
    with pytest.MonkeyPatch.context() as patch:
        checkpoints = opened(place, local)
        fault = Fault(patch, after, error)
        for update in updates:
            try:
                saved(checkpoints, update)
            except error as raised:
                if error is OSError:
                    assert str(raised).startswith(f"checkpoint at {place} could not be written: ")
                break
        return fault.happened


def sound(place: Path, local: bool) -> list[str]:
    """Every checkpoint that is listed restores, and `best` names one of them; returns their names."""
    checkpoints = opened(place, local)
    names = checkpoints.names()
    assert names == sorted(names) and checkpoints.newest() == names[-1]
    for name in names:
        engine = Held()
        state = checkpoints.restore(engine, name)
        update = int(name[1:])
        assert (state["update"], state["steps"], engine.steps, engine.loss_scale.value) == (
            update,
            update,
            update,
            update,
        )
        expected = engine.gathered()
        assert engine.restored.keys() == expected.keys()
        assert all(torch.equal(engine.restored[n], expected[n]) for n in expected)
    assert (place / "best").read_text().strip() in names
    return names


@pytest.fixture(scope="module", autouse=True)
def without_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module", params=[True, False], ids=["local folder", "object store"])
def begun(request, tmp_path_factory) -> tuple[Path, bool]:
    place = tmp_path_factory.mktemp("begun") / "place"
    for update in range(1, BEFORE + 1):
        saved(opened(place, request.param), update)
    assert sound(place, request.param) == ["u00000002", "u00000003"]
    return place, request.param


@pytest.mark.parametrize("error", [OSError, Killed])
def test_whatever_step_fails_the_newest_checkpoint_is_whole_and_the_run_goes_on(begun, tmp_path, error):
    """A fault at every step of three checkpoints: one is forgotten, one is kept as best, one becomes the
    best."""
    first, local = begun
    steps = 0
    while True:
        place = tmp_path / f"{steps}"
        shutil.copytree(first, place)
        happened = interrupted(place, local, steps, error, range(4, 7))
        names = sound(place, local)
        assert names[-1] >= "u00000003"
        if not happened:
            break
        for update in range(int(names[-1][1:]) + 1, 7):
            saved(opened(place, local), update)
            assert (place / "latest").read_text() == f"u{update:08d}\n"
        assert sound(place, local)[-2:] == ["u00000005", "u00000006"] and not list(place.glob(f"{ATTEMPT}*"))
        steps += 1
    assert names == ["u00000005", "u00000006"]
    assert steps > 25, "a write, a rename and a deletion of every file were tried"


@pytest.mark.parametrize("error", [OSError, Killed])
def test_whatever_step_fails_when_a_checkpoint_is_written_again(begun, tmp_path, error):
    """The same update, saved anew: the older one is whole, whatever is left of this one."""
    first, local = begun
    steps, happened = 0, True
    while happened:
        place = tmp_path / f"{steps}"
        shutil.copytree(first, place)
        happened = interrupted(place, local, steps, error, range(3, 4))
        assert sound(place, local)[0] == "u00000002"
        steps += 1
    assert steps > 6


def test_the_best_is_kept_however_many_follow(tmp_path):
    checkpoints = opened(tmp_path / "place", True)
    for update in range(1, 9):
        checkpoints.save(Held(), {"update": update, "best_update": 2}, wait=True)
    assert checkpoints.names() == ["u00000002", "u00000007", "u00000008"]
    assert sorted(p.name for p in (tmp_path / "place").iterdir()) == [
        "best",
        "latest",
        "u00000002",
        "u00000007",
        "u00000008",
    ]


def test_without_a_validation_there_is_no_best(tmp_path):
    checkpoints = opened(tmp_path / "place", True)
    for update in range(1, 4):
        checkpoints.save(Held(), {"update": update, "best_update": None}, wait=True)
    assert checkpoints.names() == ["u00000002", "u00000003"] and not (tmp_path / "place" / "best").exists()
