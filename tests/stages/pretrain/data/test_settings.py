"""`data:` of the configuration, each limit from both sides; and what is handed on by it."""

import dataclasses
from pathlib import Path

import pytest
import torch

from stages.pretrain.data.batch import Batch
from stages.pretrain.data.settings import Data

TWO = {"corpora": ("a", "b")}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"corpora": ("a", "b", "a")}, "Data.corpora is .* one is given twice"),
        (TWO | {"passes": (1.0,)}, "Data.passes is .* each of the 2 corpora"),
        ({"passes": (0.0,)}, r"Data.passes\[0\] is 0.0: expected a number, above 0"),
        (TWO | {"passes": (1.0, -1.0)}, r"Data.passes\[1\] is -1.0: expected a number, above 0"),
        ({"crop_samples": 0}, "Data.crop_samples is 0"),
        ({"crop_samples": -320}, "Data.crop_samples is -320"),
        ({"crop_samples": 321}, "Data.crop_samples is 321: expected a multiple of 320"),
        ({"crop_s": 0.0}, "Data.crop_s is 0.0"),
        ({"min_segment_s": -0.1}, "Data.min_segment_s"),
        ({"max_silence": -0.01}, "Data.max_silence"),
        ({"max_clipping": 1.01}, "Data.max_clipping"),
        ({"max_bad_share": 1.01}, "Data.max_bad_share"),
        ({"window_shards": 0}, "Data.window_shards"),
        ({"valid_crops": -1}, "Data.valid_crops"),
        ({"workers": -1}, "Data.workers"),
        ({"prefetch": 0}, "Data.prefetch"),
        ({"cache_gb": 0.0}, "Data.cache_gb"),
        ({"cqt": "cqt"}, "Data.cqt"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(fields, said):
    with pytest.raises(ValueError, match=said):
        Data(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        TWO | {"passes": (1.0, 0.001)},
        TWO,
        {"crop_samples": 320},
        {"crop_s": 320 / 24_000},
        {"crops_per_segment": 1},
        {"min_segment_s": 0.0},
        {"max_silence": 0.0},
        {"max_silence": 1.0},
        {"max_clipping": 0.0},
        {"max_bad_share": 0.0},
        {"max_bad_share": 1.0},
        {"window_shards": 1},
        {"valid_crops": 0},
        {"workers": 0},
        {"prefetch": 1},
        {"cache_gb": 0.001},
        {"cqt": "cqt-12345678"},
        {"cqt": "online"},
        {"cqt": "none"},
    ],
)
def test_the_limits_themselves_are_accepted(fields):
    assert Data(**fields)


def test_a_crops_length_is_that_in_samples_or_seconds():
    assert (
        Data().samples == 120_000
        and Data(crop_s=0.4).samples == 9_600
        and Data(crop_s=0.4, crop_samples=122_880).samples == 122_880
    )


def test_every_corpus_is_passed_once_unless_passes_say_otherwise():
    assert Data(**TWO).identity()["weights"] == [1.0, 1.0]
    assert Data(**TWO, passes=(0.5, 2.0)).identity()["weights"] == [0.5, 2.0]


def test_the_cache_lies_where_it_is_said_or_where_caches_lie(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast/cache")
    assert Data(cache="/own").cache_folder == Path("/own") and Data().cache_folder == Path(
        "/fast/cache/overtone"
    )
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Data().cache_folder == Path.home() / ".cache" / "overtone"


OTHERS = {
    "codes": ("codes-12345678",),
    "cqt": "none",
    "crop_s": 0.4,
    "crop_samples": 320,
    "crops_per_segment": 2,
    "min_segment_s": 1.0,
    "min_rms_db": -40.0,
    "max_silence": 0.5,
    "max_clipping": 0.5,
    "where": "1 = 1",
    "passes": (2.0,),
    "window_shards": 3,
}
CIRCUMSTANCE = {
    "corpora": ("x",),
    "valid_crops": 3,
    "max_bad_share": 0.5,
    "workers": 0,
    "prefetch": 1,
    "cache": "x",
    "cache_gb": 1.0,
}


def test_fields_that_decide_the_samples_are_identity_and_no_other():
    assert {f.name for f in dataclasses.fields(Data)} == set(OTHERS) | set(CIRCUMSTANCE)
    usual = Data().identity()
    for name, value in OTHERS.items():
        assert Data(**{name: value}).identity() != usual, name
    for name, value in CIRCUMSTANCE.items():
        assert Data(**{name: value}).identity() == usual, name
    assert Data(crop_s=0.4).identity() == Data(crop_samples=9_600).identity(), "one length, said in two ways"
    assert usual["weights"] == [1.0] == Data(passes=(1.0,)).identity()["weights"] and usual["codes"] == []


def test_a_batch_moves_with_all_its_tensors():
    batch = Batch(
        torch.zeros(1, 2),
        torch.zeros(1, 2, dtype=torch.bool),
        {"a": torch.zeros(1), "b": torch.ones(1)},
        torch.zeros(1, 1, 1),
        None,
        ["k"],
        ["r"],
        [3],
        ["k: no"],
    )
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.wave_BN, moved.mask_BT, moved.cqt_BLF, *moved.codes.values())} == {
        "meta"
    }
    assert moved.context_BN is None and list(moved.codes) == ["a", "b"]
    assert (moved.keys, moved.recordings, moved.positions, moved.replaced) == (["k"], ["r"], [3], ["k: no"])
    with_context = dataclasses.replace(batch, cqt_BLF=None, context_BN=torch.zeros(1, 4)).to("meta")
    assert (
        with_context.context_BN.device.type == "meta"
        and with_context.cqt_BLF is None
        and batch.wave_BN.device.type == "cpu"
    )
