"""The index of pinned data on a local disk: whole or absent, and taken only when it is of this layout and
data."""

import errno
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.pretrain.data import index as pinned_module
from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.data.index import CqtColumn, Facts, load, store
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from tests.stages.pretrain.corpus import CROP, Corpus

FACTS = Facts(
    "ab" * 32,
    {"weights": [1.0], "window_shards": 2},
    ["audio"],
    (CodeColumn("codes-1", 8, 1024),),
    ("uint16",),
    CqtColumn("cqt-1", 336),
    [["s0"]],
    ["x"],
    1.5,
    0.5,
    {"train": 2, "valid": 1},
    {"train": 4, "valid": 2},
    {"data.where": 3},
)
ARRAYS = {"crops_S": np.array([1, 2]), "key_R": np.array([b"a-0", b"b-0"])}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "index" / FACTS.fingerprint


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_was_stored_is_loaded(folder):
    store(folder, FACTS, ARRAYS)
    found = load(folder, ("root",))
    assert found.facts == FACTS and found.corpora == ("root",) and found.there
    assert (
        np.array_equal(found.crops_S, ARRAYS["crops_S"])
        and found.key(1) == "b-0"
        and found.recording(1) == "b"
    )
    assert names(folder.parent) == [FACTS.fingerprint] and names(folder) == [
        "crops_S.npy",
        "facts.json",
        "key_R.npy",
    ]


@pytest.mark.parametrize("call", ["save", "rename"])
def test_a_store_that_fails_leaves_nothing_and_is_told(folder, monkeypatch, call):
    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(pinned_module.np if call == "save" else pinned_module.os, call, fails)
    with pytest.raises(OSError, match="no space left"):
        store(folder, FACTS, ARRAYS)
    assert names(folder.parent) == [] and load(folder, ("root",)) is None


def test_of_two_that_store_at_once_the_first_wins_and_the_second_is_content(folder):
    store(folder, FACTS, ARRAYS)
    before = (folder / "facts.json").stat().st_ino
    store(folder, FACTS, ARRAYS)
    assert (folder / "facts.json").stat().st_ino == before and names(folder.parent) == [FACTS.fingerprint]


@pytest.mark.parametrize(
    "harm",
    [
        {"layout": 2},
        {"fingerprint": "cd" * 32},
        {"codes": 3},
        {"codes": [{"title": "x"}]},
        {"cqt": {"bins": 1}},
        None,
        "{",
    ],
)
def test_an_index_of_another_layout_or_data_or_a_damaged_one_is_not_taken(folder, harm):
    store(folder, FACTS, ARRAYS)
    path = folder / "facts.json"
    path.write_text(
        harm if isinstance(harm, str) else json.dumps(harm and json.loads(path.read_text()) | harm)
    )
    assert load(folder, ("root",)) is None
    path.unlink()
    assert load(folder, ("root",)) is None


def test_facts_are_read_as_they_were_written_or_refused_with_what_helps():
    said = json.loads(json.dumps(FACTS.to_json()))
    assert Facts.from_json(said) == FACTS and said["cqt_bins"] == 336
    bare = replace(FACTS, cqt=None)
    assert (
        Facts.from_json(json.loads(json.dumps(bare.to_json()))) == bare and bare.to_json()["cqt_bins"] is None
    )
    assert Facts.from_json(said | {"later": 1}) == FACTS
    del said["shards"]
    with pytest.raises(
        ValueError, match=r"RUN/data.json\) cannot be read .*--set resume.allow=data pins it anew"
    ):
        Facts.from_json(said)


def test_workers_open_the_arrays_by_their_path(folder):
    store(folder, FACTS, ARRAYS)
    found = load(folder, ("root",))
    assert found.crops_S is found.crops_S
    sent = pickle.loads(pickle.dumps(found))
    assert not sent._arrays and np.array_equal(sent.crops_S, found.crops_S) and sent == found
    with pytest.raises(AttributeError, match="crop_S"):
        found.crop_S  # noqa: B018


def test_an_epoch_shorter_than_a_global_batch_is_refused_with_what_was_left_out(folder):
    arrays = {"crops_S": np.array([3]), "corpus_S": np.array([0])}
    store(folder, FACTS, arrays)
    found = load(folder, ("root",))
    found.require(3)
    with pytest.raises(
        ValueError,
        match=re.escape(
            "global_batch is 4, an epoch has 3 samples (1.50 h; left out: 3 segments: data.where)"
        ),
    ):
        found.require(4)
    assert (
        found.describe()[0]
        == "data abababababab: 1.50 h, 2 recordings, 3 samples an epoch; held out 0.50 h, 1 recordings"
    )
    assert found.describe()[1:] == ["  left out: 3 segments, data.where"]
    found.recordings["valid"] = 0
    assert "3 samples an epoch; NO held-out music, so no held-out loss" in found.describe()[0]


def test_crops_of_a_segment_are_those_that_fit_or_as_many_as_asked(tmp_path):
    made = Corpus(str(tmp_path / "out")).write(shards=1, recordings=3, segments=2).gather()
    data = Data(corpora=(made.root,), crop_samples=CROP, cache=str(tmp_path / "cache"))
    for asked in (None, 1, 9, 65_535, 70_000):
        found = pin(replace(data, crops_per_segment=asked))
        held = set(found.valid_V.tolist())
        expected = [
            0 if row in held else min(asked or int(n) // CROP, 65_535)
            for row, n in enumerate(found.samples_R)
        ]
        assert found.crops_R.tolist() == expected and len(held) == 2
        assert found.ends_R.tolist() == np.cumsum(expected).tolist() and found.samples_per_epoch == sum(
            expected
        )


def test_the_same_rows_in_another_split_are_other_data(tmp_path):
    prints = []
    for valid in (1, 2):
        made = Corpus(str(tmp_path / f"out{valid}")).write(shards=2, valid=valid).gather()
        prints.append(
            pin(Data(corpora=(made.root,), crop_samples=CROP, cache=str(tmp_path / "cache"))).fingerprint
        )
    assert prints[0] != prints[1]
