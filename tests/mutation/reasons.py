"""Survivors that are known, with the reason of each: `tests/mutants.md`.

A line there is "- OPERATOR in `the line of code`: reason", below a heading with the module's path. It speaks
of every defect of that operator in that line.
"""

import re
from pathlib import Path

from tests.mutation.defects import Mutant
from tests.mutation.targets import ROOT

FILE = ROOT / "tests" / "mutants.md"
LINE = re.compile(r"^- (?P<operator>\w+) in `(?P<code>.*)`: (?P<reason>.+)$")


def read(path: Path = FILE) -> dict[tuple[str, str, str], str]:
    """(module, operator, line of code) → reason. Raises ValueError for a line of another form."""
    found, module = {}, ""
    for text in path.read_text().splitlines() if path.exists() else []:
        if text.startswith("## "):
            module = text.removeprefix("## ").strip()
        elif text.startswith("- "):
            match = LINE.match(text)
            if match is None:
                raise ValueError(f"{path}: {text!r} is not «- OPERATOR in `code`: reason»")
            found[module, match["operator"], match["code"]] = match["reason"]
    return found


def place(mutant: Mutant, root: Path = ROOT) -> tuple[str, str, str]:
    """What `read` knows a mutant by."""
    line = (root / mutant.module).read_text().splitlines()[mutant.line - 1].strip()
    return mutant.module, mutant.operator, line
