"""`tests/mutants.md`: its lines are read, and none speaks of code that is no longer there."""

import pytest

from tests.mutation import reasons
from tests.mutation.defects import mutants
from tests.mutation.targets import ROOT


def test_every_reason_is_of_a_defect_that_can_be_made():
    listed = reasons.read()
    modules = dict.fromkeys(module for module, _, _ in listed)
    possible = {reasons.place(mutant) for module in modules for mutant in mutants(ROOT, module)}
    assert listed and not set(listed) - possible


def test_a_line_of_another_form_is_refused(tmp_path):
    (tmp_path / "m.md").write_text("## a.py\n- AddNot in `if x:`: fine\n- AddNot: because\n")
    with pytest.raises(ValueError, match="because"):
        reasons.read(tmp_path / "m.md")
