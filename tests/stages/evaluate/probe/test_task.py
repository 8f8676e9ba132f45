"""Lists of items: what is written is read, groups stay on one side, mistakes are named by line."""

from pathlib import Path

import pytest

from stages.evaluate.probe.task import Item, Task, read, write

ITEMS = [
    Item("a/1.wav", None, None, "g1", "0", "x"),
    Item("a/2, with a comma.wav", 0.5, 12.25, "g2", "1", "y|z"),
    Item("b/ä.wav", 0.0, None, "g3", "2", "0.1 0.2"),
]


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "toy.csv", ITEMS)
    found = read(tmp_path / "toy.csv", "class", Path("/audio"))
    assert (found.name, found.items, found.root) == ("toy", tuple(ITEMS), Path("/audio"))


def test_a_group_on_two_sides_is_refused():
    items = (*ITEMS, Item("c.wav", None, None, "g1", "1", "x"))
    with pytest.raises(ValueError, match="g1.*stays on one side"):
        Task("toy", "class", items, Path())


@pytest.mark.parametrize(
    "folds", [["0", "1"], ["train", "test"], ["train", "valid", "test", "0"], ["a", "b", "c"]]
)
def test_folds_that_are_no_split_are_refused(folds):
    items = tuple(Item("a.wav", None, None, fold, fold, "x") for fold in folds)
    with pytest.raises(ValueError, match="train, valid and test, or three or more numbered"):
        Task("toy", "class", items, Path())


@pytest.mark.parametrize(
    "line, words",
    [("a.wav,soon,,g,0,x", "line 2: start_s"), ("a.wav,0", "line 2"), ("a,b,c,d,e,f,g", "line 2")],
)
def test_a_wrong_line_is_named(tmp_path, line, words):
    path = tmp_path / "toy.csv"
    path.write_text(f"audio,start_s,end_s,group,fold,target\n{line}\n")
    with pytest.raises(ValueError, match=words):
        read(path, "class", Path())


def test_a_fixed_split_is_one_run():
    items = tuple(Item("a.wav", None, None, side, side, "x") for side in ("train", "valid", "test"))
    assert Task("toy", "class", items, Path()).runs() == [({"train"}, {"valid"}, {"test"})]
