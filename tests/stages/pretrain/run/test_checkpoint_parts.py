"""What a checkpoint holds, what restoring it sets, and what it refuses; with a stand-in for the engine."""

import hashlib
import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.pretrain.run import checkpoint
from stages.pretrain.run.checkpoint import Checkpoints, seed_generators
from tests.stages.pretrain.run.test_checkpoint_faults import ALONE, Held

STATE = {"update": 7, "best_update": None, "note": "kept"}
NAME = "u00000007"


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of update 7, and the generator's next number at that moment."""
    engine = Held()
    engine.steps, engine.loss_scale.value = 5, 4.0
    checkpoints = Checkpoints(str(tmp_path / "place"), 3, ALONE)
    torch.manual_seed(11)
    assert checkpoints.save(engine, STATE, wait=True) == NAME
    return checkpoints, torch.rand(3)


def test_its_files_and_its_state(saved, tmp_path):
    folder = tmp_path / "place" / NAME
    state = json.loads((folder / "state.json").read_text())
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.glob("*.safetensors")}
    assert state == STATE | {"steps": 5, "scale": {"value": 4.0, "good": 0}, "world": 1, "sha256": digests}
    assert sorted(digests) == ["model.safetensors", "optimizer.safetensors", "rng.safetensors"]
    names = {f.name: set(checkpoint.load(f.read_bytes())) for f in folder.glob("*.safetensors")}
    moments = {f"{m}.{n}" for m in ("exp_avg", "exp_avg_sq") for n in ("weight", "bias")}
    assert names == {
        "model.safetensors": {"weight", "bias"},
        "optimizer.safetensors": moments,
        "rng.safetensors": {"cpu.0"},
    }


def test_restoring_sets_steps_scale_and_generators(saved):
    checkpoints, following = saved
    engine = Held()
    torch.manual_seed(12)
    state = checkpoints.restore(engine, NAME)
    assert state["note"] == "kept" and (engine.steps, engine.loss_scale.value) == (5, 4.0)
    assert torch.equal(torch.rand(3), following)


def test_on_another_number_of_ranks_the_generators_stay_as_they_were_seeded(saved, tmp_path):
    place = tmp_path / "place" / NAME / "state.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"world": 2}))
    engine = Held()
    torch.manual_seed(12)
    expected = torch.rand(3)
    torch.manual_seed(12)
    saved[0].restore(engine, NAME)
    assert torch.equal(torch.rand(3), expected)


def test_only_rank_0_writes(tmp_path):
    second = Checkpoints(str(tmp_path / "place"), 3, replace(ALONE, rank=1))
    assert second.save(Held(), STATE, wait=True) == NAME
    assert not (tmp_path / "place").exists()


def test_a_checkpoint_waits_for_the_one_before_and_says_what_went_wrong_with_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path / "place"), 3, ALONE)
    monkeypatch.setattr(checkpoint, "save", lambda tensors: (_ for _ in ()).throw(OSError("disk full")))
    checkpoints.save(Held(), STATE)
    with pytest.raises(OSError, match=r"checkpoint at .*/place could not be written: disk full"):
        checkpoints.save(Held(), STATE)
    checkpoints.finish()  # it was said once


def test_the_folder_is_flushed_between_its_own_name_and_the_name_of_the_latest(tmp_path, monkeypatch):
    checkpoints, seen = Checkpoints(str(tmp_path / "place"), 3, ALONE), []
    rename, write = os.rename, checkpoints.storage.write
    monkeypatch.setattr(os, "rename", lambda a, b: seen.append("rename") or rename(a, b))
    monkeypatch.setattr(checkpoint, "fsync", lambda path: seen.append(f"flush {path.name}"))
    monkeypatch.setattr(
        checkpoints.storage,
        "write",
        lambda name, data: seen.append(name.rpartition("/")[2]) or write(name, data),
    )
    checkpoints.save(Held(), STATE, wait=True)
    assert seen == [
        *(f"{part}.safetensors" for part in checkpoint.FILES),
        "state.json",
        "rename",
        "flush place",
        "latest",
    ]


def test_what_a_killed_run_left_of_the_same_update_does_not_get_into_it(tmp_path):
    left = tmp_path / "place" / f".attempt-{NAME}"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    Checkpoints(str(tmp_path / "place"), 3, ALONE).save(Held(), STATE, wait=True)
    assert not left.exists() and not (tmp_path / "place" / NAME / "half").exists()


def test_without_a_checkpoint_there_is_no_newest(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "place"), 3, ALONE)
    assert checkpoints.newest() is None and checkpoints.names() == []


def test_only_folders_of_updates_that_are_whole_are_listed(saved, tmp_path):
    for name in (".attempt-u00000009", "mine", "u00000008"):
        (tmp_path / "place" / name).mkdir()
    for name in (".attempt-u00000009", "mine"):
        (tmp_path / "place" / name / "state.json").write_text("{}")
    assert saved[0].names() == [NAME] and saved[0].newest() == NAME


@pytest.mark.parametrize("part", checkpoint.FILES)
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_is_refused_by_its_name(saved, tmp_path, part, damage):
    file = tmp_path / "place" / NAME / f"{part}.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "changed" else data[:-1])
    if damage == "gone":
        file.unlink()
    with pytest.raises(
        ValueError,
        match=f"checkpoint .*/{NAME}/{part}.safetensors: .*; remove the folder {NAME} to go on from "
        f"the one before",
    ):
        saved[0].restore(Held(), NAME)


def test_a_file_that_is_no_safetensors_is_refused_although_its_digest_is_right(saved, tmp_path):
    folder = tmp_path / "place" / NAME
    (folder / "model.safetensors").write_bytes(b"xx")
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["model.safetensors"] = hashlib.sha256(b"xx").hexdigest()
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=f"{NAME}/model.safetensors: .*; remove the folder {NAME}"):
        saved[0].restore(Held(), NAME)


@pytest.mark.parametrize("text", ["{", None])
def test_a_state_that_cannot_be_read_is_refused(saved, tmp_path, text):
    file = tmp_path / "place" / NAME / "state.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(
        ValueError, match=f"{NAME}/state.json: .*; remove the folder {NAME} to go on from the one before"
    ):
        saved[0].restore(Held(), NAME)


@pytest.mark.parametrize(
    ("name", "seen", "own"), [("weight", r"\(2, 3\)", r"\(2, 4\)"), ("more", "None", r"\(1,\)")]
)
def test_another_model_is_refused_before_anything_is_set(saved, name, seen, own):
    engine = Held()
    if name == "weight":
        engine.model.weight.data = torch.zeros(2, 4)
    else:
        engine.model.more = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(
        ValueError, match=f"checkpoint .*/{NAME}: {name} is {seen}, this model's is {own}: the model changed"
    ):
        saved[0].restore(engine, NAME)
    assert not hasattr(engine, "restored") and engine.steps == 0


def test_generators_are_seeded_by_seed_update_and_rank():
    def drawn(seed: int, update: int, rank: int) -> tuple:
        seed_generators(seed, update, replace(ALONE, rank=rank))
        assert torch.initial_seed() == int(np.random.SeedSequence([seed, update, rank]).generate_state(1)[0])
        return float(torch.rand(())), random.random()

    first = drawn(1, 2, 3)
    assert drawn(1, 2, 3) == first
    for other in ((9, 2, 3), (1, 9, 3), (1, 2, 9)):
        assert all(a != b for a, b in zip(drawn(*other), first, strict=True))
