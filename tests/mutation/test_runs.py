"""Runs of mutants: what a test notices is told apart from what it does not; a sample of the project's own."""

import pytest

from tests.mutation import runs
from tests.mutation.__main__ import run, sample
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


@pytest.fixture
def own(tmp_path) -> Slot:
    """A slot with one module and one weak test of it."""
    copy = tmp_path / "slot"
    copy.mkdir()
    (copy / "weak.py").write_text(WEAK)
    (copy / "test_weak.py").write_text(TEST)
    return Slot(copy, Server(), lambda module: ["test_weak.py"])


def test_killed_survived_and_hanging_mutants_are_told_apart(own, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE_S", 3.0)
    tried = [m for m in mutants(own.copy, "weak.py") if m.operator != "NumberReplacer"]
    found = {(m.line, m.operator): own.outcome(m) for m in tried}
    assert {place: row["outcome"] for place, row in found.items()} == {
        (2, "ReplaceComparisonOperator_Gt_GtE"): "killed",
        (2, "AddNot"): "killed",
        (3, "RemoveStatement"): "killed",  # it hangs
        (4, "ReplaceComparisonOperator_Lt_LtE"): "survived",
        (4, "AddNot"): "killed",
        (5, "RemoveStatement"): "survived",
    }
    assert found[4, "AddNot"]["by"] == "test_weak.py::test_it" and found[3, "RemoveStatement"]["seconds"] >= 3
    assert (own.copy / "weak.py").read_text() == WEAK


def test_a_test_that_fails_without_a_defect_is_an_error(own):
    (own.copy / "test_weak.py").write_text(TEST.replace("5", "6"))
    with pytest.raises(BaselineFails, match="fail without a defect"):
        own.outcome(next(mutants(own.copy, "weak.py")))


def test_a_run_without_a_failed_test_kills_nothing_unless_the_defect_did_it(own):
    """Such as when the disk is full: else every mutant would count as killed from then on."""
    own.baseline("weak.py")
    (own.copy / "conftest.py").write_text("import os\nos._exit(1)\n")
    with pytest.raises(BaselineFails, match="passed before and fail now"):
        own.outcome(next(mutants(own.copy, "weak.py")))
    (own.copy / "conftest.py").write_text("import os, weak\nif weak.limit(9) != 5:\n    os._exit(1)\n")
    negated = [m for m in mutants(own.copy, "weak.py") if (m.line, m.operator) == (2, "AddNot")]
    assert [own.outcome(m) | {"seconds": 0} for m in negated] == [
        {"outcome": "killed", "by": "ends with 1", "seconds": 0}
    ]


@pytest.mark.timeout(3600)
def test_a_sample_of_the_projects_mutants_is_killed(tmp_path):
    everything, found = [m for module in modules() for m in mutants(ROOT, module)], {}
    chosen = sample(everything, SAMPLE, seed=0)
    failures = run(
        chosen, lambda mutant, outcome: found.update({mutant: outcome["outcome"]}), folder=tmp_path
    )
    assert not failures and set(found) == set(chosen), failures
    survivors = [mutant.name for mutant, outcome in found.items() if outcome == "survived"]
    assert len(survivors) <= (1 - KILLED) * SAMPLE, survivors
