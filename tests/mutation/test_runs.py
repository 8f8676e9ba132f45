"""Runs of mutants: what a test notices is told apart from what it does not; a sample of the project's own."""

import random

import pytest

from tests.mutation.__main__ import run
from tests.mutation.defects import mutants
from tests.mutation.runs import BaselineFails, Server, Slot
from tests.mutation.targets import ROOT, modules

WEAK = """\
def limit(x):
    while x > 5:
        x -= 1
    if x < 0:
        raise ValueError(x)
    return x
"""
TEST = "from weak import limit\n\ndef test_it():\n    assert limit(9) == 5\n"
SAMPLE, KILLED = 60, 0.9

pytestmark = pytest.mark.slow


def test_killed_survived_and_hanging_mutants_are_told_apart(tmp_path):
    copy = tmp_path / "slot"
    copy.mkdir()
    (copy / "weak.py").write_text(WEAK)
    (copy / "test_weak.py").write_text(TEST)
    own = Slot(copy, Server(), lambda module: ["test_weak.py"])
    found = {m.operator: own.outcome(m) for m in mutants(copy, "weak.py")}
    assert {name: row["outcome"] for name, row in found.items() if name != "NumberReplacer"} == {
        "ReplaceComparisonOperator_Lt_LtE": "survived",
        "ReplaceComparisonOperator_Gt_GtE": "killed",
        "AddNot": "killed",
        "RemoveStatement": "survived",
    }
    assert found["AddNot"]["by"] == "test_weak.py::test_it"
    assert (copy / "weak.py").read_text() == WEAK


def test_a_test_that_fails_without_a_defect_is_an_error(tmp_path):
    copy = tmp_path / "slot"
    copy.mkdir()
    (copy / "weak.py").write_text(WEAK)
    (copy / "test_weak.py").write_text(TEST.replace("5", "6"))
    own = Slot(copy, Server(), lambda module: ["test_weak.py"])
    with pytest.raises(BaselineFails, match="fail without a defect"):
        own.outcome(next(mutants(copy, "weak.py")))


def test_a_run_without_a_failed_test_kills_nothing_unless_the_defect_did_it(tmp_path):
    """Such as when the disk is full: else every mutant would count as killed from then on."""
    copy = tmp_path / "slot"
    copy.mkdir()
    (copy / "weak.py").write_text(WEAK)
    (copy / "test_weak.py").write_text(TEST)
    own = Slot(copy, Server(), lambda module: ["test_weak.py"])
    own.baseline("weak.py")
    (copy / "conftest.py").write_text("import os\nos._exit(1)\n")
    with pytest.raises(BaselineFails, match="passed before and fail now"):
        own.outcome(next(mutants(copy, "weak.py")))
    (copy / "conftest.py").write_text("import os, weak\nif weak.limit(9) != 5:\n    os._exit(1)\n")
    found = {m.operator: own.outcome(m) for m in mutants(copy, "weak.py")}
    assert found["AddNot"]["outcome"] == "killed" and found["AddNot"]["by"].startswith("ends with ")


@pytest.mark.timeout(3600)
def test_a_sample_of_the_projects_mutants_is_killed(tmp_path):
    everything = [m for module in modules() for m in mutants(ROOT, module)]
    found = {}
    run(
        random.Random(0).sample(everything, SAMPLE),
        lambda mutant, outcome: found.update({mutant.name: outcome}),
        folder=tmp_path,
    )
    survivors = [name for name, outcome in found.items() if outcome["outcome"] == "survived"]
    assert len(survivors) <= (1 - KILLED) * len(found), survivors
