"""Validation chooses, the test side is only judged; every item of a cross-validation is tested once."""

import numpy as np
import pytest
import torch

from stages.evaluate.probe import heads, protocol
from stages.evaluate.probe.pooling import Features
from stages.evaluate.probe.task import Item, Task


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Two rates and 30 epochs are enough for toys."""
    monkeypatch.setattr(heads, "RATES", (1e-1, 1e-2))
    monkeypatch.setattr(heads, "EPOCHS", 30)


def task(kind="class", folds=5, groups=15, each=8, targets=("a", "b"), split=None):
    items = []
    for group in range(groups):
        fold = split(group) if split else str(group % folds)
        for number in range(each):
            target = targets[(group + number) % len(targets)]
            items.append(Item(f"{group}-{number}.wav", None, None, f"g{group}", fold, target))
    return Task("toy", kind, tuple(items), ".")


def features(own, knowing=1, layers=3, seed=0, noise=0.3):
    """Only layer `knowing` tells the target."""
    random = np.random.default_rng(seed)
    x_NLF = random.normal(0, 1, (len(own.items), layers, 4)).astype(np.float32)
    names = sorted({item.target for item in own.items})
    for i, item in enumerate(own.items):
        x_NLF[i, knowing] *= noise
        x_NLF[i, knowing, names.index(item.target)] += 1
    return Features(x_NLF, np.abs(x_NLF))


def of(results, **wanted):
    return [r for r in results if all(getattr(r, name) == value for name, value in wanted.items())]


def test_the_layer_that_knows_is_chosen_and_seen_in_turn():
    own = task()
    results = protocol.judge(own, "toy", ("0", "1", "2"), features(own))
    (best,) = of(results, probe="linear", layer="best", pooling="mean")
    assert best.score > 0.95 and best.low <= best.score <= best.high
    assert all(choice.startswith("1@") for choice in best.chosen.split())
    assert (best.items, best.groups, len(best.item_scores)) == (120, 15, 120)
    each = [of(results, probe="linear", layer=str(i), pooling="mean")[0].score for i in range(3)]
    assert each[1] > 0.95 and max(each[0], each[2]) < 0.7
    for probe in ("mlp", "knn"):
        assert of(results, probe=probe)[0].score > 0.9
    assert len(of(results, probe="mlp")) == 1
    assert of(results, layer="weighted", pooling="mean")[0].score > 0.9


def test_features_that_know_nothing_are_at_chance():
    own = task()
    rows = protocol.judge(own, "toy", ("0",), features(own, knowing=0, layers=1, noise=1e4), ("linear",))
    assert all(abs(row.score - 0.5) < 0.2 for row in rows)


def test_test_items_never_teach():
    """Targets of the test side are turned round: a probe that saw them would be right about them."""
    own = task(split=lambda group: ("train", "valid", "test")[group % 3])
    found = features(own)
    turned = [
        Item(*vars(item).values())
        if item.fold != "test"
        else Item(item.audio, None, None, item.group, "test", {"a": "b", "b": "a"}[item.target])
        for item in own.items
    ]
    results = protocol.judge(
        Task("toy", "class", tuple(turned), "."), "toy", ("0", "1", "2"), found, ("linear",)
    )
    assert of(results, layer="best", pooling="mean")[0].score < 0.05


def test_a_fixed_split_runs_five_seeds():
    own = task(split=lambda group: ("train", "valid", "test")[group % 3])
    (row,) = of(
        protocol.judge(own, "toy", ("0",), features(own, 0, 1), ("linear",)), layer="best", pooling="mean"
    )
    assert len(row.chosen.split()) == protocol.SEEDS
    assert (row.items, row.groups, len(row.item_scores)) == (40, 5, 200)


def test_runs_rotate_the_folds():
    runs = task(folds=4, groups=8).runs()
    assert [sorted(test) for _, _, test in runs] == [["0"], ["1"], ["2"], ["3"]]
    assert all(not (a & b or b & c or a & c) and len(a | b | c) == 4 for a, b, c in runs)


def test_beats_are_found_by_frame():
    random = np.random.default_rng(0)
    items, frames = [], []
    for song in range(4):
        times = np.arange(0.2 + 0.1 * song, 30, 0.5)
        x_TLD = random.normal(0, 0.2, (750, 1, 3)).astype(np.float16)
        x_TLD[np.floor(times / 0.04).astype(int), 0, 1] += 2
        frames.append(x_TLD)
        items.append(
            Item(f"{song}.ogg", None, None, f"s{song}", str(song), " ".join(f"{t:.3f}" for t in times))
        )
    none = np.zeros((0, 0, 0), np.float32)
    own = Task("beats", "beats", tuple(items), ".")
    (row,) = protocol.judge(own, "toy", ("0",), Features(none, none, tuple(frames), 0.04), ("linear",))
    assert row.pooling == "frames" and row.score > 0.95 and row.items == 4


def test_frames_of_a_beat():
    target = protocol.beat_frames(np.array([0.0, 0.1, 0.95]), 24, 0.04)[:, 0]
    assert target.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 22, 23]
    assert target[[0, 2, 23]].tolist() == [1, 1, 1] and target[[1, 3, 22]].tolist() == [0.5, 0.5, 0.5]


def test_numbers_and_tags():
    own = task()
    x = features(own, 0, 1)
    two = tuple(
        Item(i.audio, None, None, i.group, i.fold, f"{i.target == 'a':d} {3 * (i.target == 'b'):d}")
        for i in own.items
    )
    rows = protocol.judge(Task("n", "numbers", two, ".", names=("x", "y")), "toy", ("0",), x, ("linear",))
    assert {r.metric for r in rows} == {"r2", "r2_x", "r2_y"}
    assert of(rows, metric="r2", layer="best", pooling="mean")[0].score > 0.7
    tags = tuple(
        Item(i.audio, None, None, i.group, i.fold, "" if i.target == "a" else "x|y") for i in own.items
    )
    rows = protocol.judge(Task("t", "tags", tags, "."), "toy", ("0",), x, ("linear",))
    assert of(rows, metric="roc_auc", layer="best", pooling="mean")[0].score > 0.95


@pytest.mark.parametrize(
    "kind, target, words", [("key", "H major", "is no key"), ("numbers", "loud", "float")]
)
def test_a_wrong_target_is_named(kind, target, words):
    own = task(kind, targets=(target,))
    with pytest.raises(ValueError, match=words):
        protocol.judge(own, "toy", ("0",), features(task(), 0, 1))


def test_the_same_result_twice():
    own = task()
    torch.manual_seed(5)
    first = protocol.judge(own, "toy", ("0", "1", "2"), features(own), ("linear",))
    torch.manual_seed(6)
    assert protocol.judge(own, "toy", ("0", "1", "2"), features(own), ("linear",)) == first
