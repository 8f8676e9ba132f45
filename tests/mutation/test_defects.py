"""The defects: what is changed and what is left alone."""

import pytest

from tests.mutation import targets
from tests.mutation.defects import OWN, defective, mutants, operators

WEAK = "def limit(x):\n    if x > 1:\n        raise ValueError(x)\n    return x\n"


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "weak.py").write_text(WEAK)
    return tmp_path


def test_boundaries_negations_numbers_and_statements_are_changed(copy):
    found = {
        m.operator: defective(copy, m) for m in mutants(copy, "weak.py") if m.operator != "NumberReplacer"
    }
    assert found == {
        "ReplaceComparisonOperator_Gt_GtE": WEAK.replace("x > 1", "x >= 1"),
        "AddNot": WEAK.replace("if x > 1", "if not x > 1"),
        "RemoveStatement": WEAK.replace("raise ValueError(x)", "pass"),
    }
    numbers = [defective(copy, m) for m in mutants(copy, "weak.py") if m.operator == "NumberReplacer"]
    assert numbers == [WEAK.replace("> 1", "> 2"), WEAK.replace("> 1", "> 0")]


@pytest.mark.parametrize("name", sorted(OWN))
def test_an_operator_does_what_its_examples_say(copy, name):
    for example in operators()[name].examples():
        (copy / "weak.py").write_text(example.pre_mutation_code)
        assert [defective(copy, m) for m in mutants(copy, "weak.py") if m.operator == name] == [
            example.post_mutation_code
        ]


@pytest.mark.parametrize(
    "text",
    [
        "def f(x: int | None) -> int | None: ...\n",
        "x: int | None = None\n",
        "@dataclass(frozen=True)\nclass A:\n    pass\n",
        "n = 320\n",
        "zip(a, b, strict=True).x\n",
        "def f(*a, b, **c): ...\n",
        "x = f(*a, **b)\n",
    ],
)
def test_what_changes_nothing_of_value_is_left_alone(copy, text):
    (copy / "weak.py").write_text(text)
    assert [m.operator for m in mutants(copy, "weak.py") if m.operator != "RemoveDecorator"] == []


def test_arithmetic_is_changed(copy):
    (copy / "weak.py").write_text("x = a + b * c ** d // e | f\n")
    found = {m.operator.removeprefix("ReplaceBinaryOperator_") for m in mutants(copy, "weak.py")}
    assert found == {"Add_Sub", "Mul_Div", "Pow_Mul", "FloorDiv_Mul", "BitOr_BitAnd"}


def test_what_would_be_no_python_is_no_defect(copy):
    (copy / "weak.py").write_text("if m := f():\n    g()\n")
    found = {m.operator: defective(copy, m) for m in mutants(copy, "weak.py")}
    assert found == {"AddNot": None, "RemoveStatement": "if m := f():\n    pass\n"}


def test_a_changed_function_has_other_keys_and_its_neighbours_have_not(copy):
    def keys() -> dict[int, set[str]]:
        found = {}
        for mutant in mutants(copy, "weak.py"):
            found.setdefault(mutant.line, set()).add(mutant.key)
        return found

    (copy / "weak.py").write_text("a = 1\n\n" + WEAK)
    before = keys()
    assert sum(len(one) for one in before.values()) == len(list(mutants(copy, "weak.py"))) == 7
    (copy / "weak.py").write_text("a = 2\n\n\n" + WEAK)
    after = keys()
    assert before[4] == after[5] and before[5] == after[6] and before[1].isdisjoint(after[1])


def test_every_module_has_tests():
    assert len(targets.modules()) >= 38
    assert {m: targets.tests_of(m) for m in targets.modules() if not targets.tests_of(m)} == {}
