"""Which defects are made: a choice of cosmic-ray's operators, and two of our own.

Of each comparison its boundary (and of equalities the opposite), of each arithmetic operator its inverse:
what the other replacements of an operator would show, these show too. Numbers are changed where they are 0,
1 or 2: positions, counts and limits. Larger ones are tuning values, widths in messages and documented
constants.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator

COMPARISONS = ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is")
ARITHMETIC = (
    "Add_Sub",
    "Sub_Add",
    "Mul_Div",
    "Div_Mul",
    "FloorDiv_Mul",
    "Mod_Mul",
    "Pow_Mul",
    "BitAnd_BitOr",
    "BitOr_BitAnd",
    "RShift_LShift",
    "LShift_RShift",
)
ARITHMETIC_NODES = ("arith_expr", "term", "power", "shift_expr", "and_expr", "expr", "atom_expr")
OTHERS = (
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_USub_UAdd",
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "NumberReplacer",
    "RemoveDecorator",
    "ZeroIterationForLoop",
)
SMALL = ("0", "1", "2")  # numbers that are changed
REMOVED = ("raise_stmt", "del_stmt")  # not asserts: they say what only a defect elsewhere can break


class RemoveStatement(Operator):
    """Replaces a statement that is there for its effect alone by `pass`: a call, raise, del, `+=`."""

    def mutation_positions(self, node):
        if node.type == "simple_stmt" and _has_effect(node.children[0]):
            yield node.start_pos, node.children[0].end_pos

    def mutate(self, node, index):
        node.children[0] = parso.parse(node.children[0].get_first_leaf().prefix + "pass")
        return node

    @classmethod
    def examples(cls):
        return (Example("f(x)\n", "pass\n"), Example("raise E\n", "pass\n"))


class CatchNothing(Operator):
    """Replaces what an `except` catches by `()`. (cosmic-ray's own operator knows no dotted names.)"""

    def mutation_positions(self, node):
        if node.type == "except_clause":
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        node.children[1] = parso.parse(" ()")
        return node

    @classmethod
    def examples(cls):
        before = "try:\n    f()\nexcept a.E as e:\n    pass\n"
        return (Example(before, before.replace("a.E", "()")),)


OWN = {"RemoveStatement": RemoveStatement(), "CatchNothing": CatchNothing()}


def _has_effect(node) -> bool:
    if node.type == "atom_expr":
        return node.children[-1].type == "trailer" and node.children[-1].children[0] == "("
    if node.type == "expr_stmt":
        return getattr(node.children[1], "type", "") == "operator" and node.children[1].value not in ("=",)
    return node.type in REMOVED


def operators() -> dict[str, Operator]:
    names = [
        *(f"ReplaceComparisonOperator_{c}" for c in COMPARISONS),
        *(f"ReplaceBinaryOperator_{a}" for a in ARITHMETIC),
        *OTHERS,
    ]
    return {name: get_operator(f"core/{name}")() for name in names} | OWN


@dataclass(frozen=True)
class Mutant:
    """One defect of one module. `key` stays the same as long as the text of its function does."""

    module: str  # path relative to the root
    line: int
    operator: str
    occurrence: int  # in the module
    key: str

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line} {self.operator}"


def mutants(root: Path, module: str) -> Iterator[Mutant]:
    """Every defect of a module once, in the order of operators and places."""
    tree = get_ast((root / module).read_text())
    for name, operator in operators().items():
        seen: Counter[str] = Counter()  # places of this operator, by the text of their function
        places = [(node, start) for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, (line, _)) in enumerate(places):
            text = hashlib.sha256(_function(node).get_code().strip().encode()).hexdigest()[:12]
            if _counts(name, node, occurrence):
                yield Mutant(module, line, name, occurrence, f"{module}:{text}:{name}:{seen[text]}")
            seen[text] += 1


def _function(node):
    """The outermost function round a node, or its statement where there is none."""
    above = list(_above(node))
    functions = [one for one in above if one.type in ("funcdef", "async_funcdef")]
    return functions[-1] if functions else above[-2] if len(above) > 1 else node


def _counts(name: str, node, occurrence: int) -> bool:
    """Whether the defect can change what the program does, as far as its place tells."""
    if name != "RemoveDecorator" and any(parent.type == "decorator" for parent in _above(node)):
        return False  # such as dataclass(frozen=True), which guards against mistakes, not data
    if "BinaryOperator" in name and (node.parent.type not in ARITHMETIC_NODES or _is_annotation(node)):
        return False  # `*` and `**` of parameters and arguments, `int | None` of a type
    if (
        getattr(node.parent, "type", "") == "argument"
        and node.parent.children[0].get_code().strip() == "strict"
    ):
        return False  # of zip: as an assert
    number = getattr(node, "value", "")
    return name != "NumberReplacer" or (number in SMALL and (occurrence % 2 == 0 or number != "0"))


def _above(node) -> Iterator:
    while node is not None:
        yield node
        node = node.parent


def _is_annotation(node) -> bool:
    """`int | None` of a parameter, a result or a field."""
    return any(
        parent.type in ("annassign", "tfpdef") or (parent.type == "funcdef" and child is parent.annotation)
        for child, parent in zip(_above(node), _above(node.parent), strict=False)
    )


def defective(root: Path, mutant: Mutant) -> str | None:
    """The module's text with the defect; None where that is no Python, or no change."""
    original = (root / mutant.module).read_text()
    text = mutate_code(original, operators()[mutant.operator], mutant.occurrence)
    try:
        return text if text is None or (text != original and compile(text, mutant.module, "exec")) else None
    except SyntaxError:
        return None
