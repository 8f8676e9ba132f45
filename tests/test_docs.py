"""What the documents promise: links and named functions exist, and the README can be read to its end."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
FUNCTION = re.compile(r"`((?:pipeline|stages|cluster)/[\w/]+\.py):([\w.]+)`")
FILE = re.compile(
    r"`((?:pipeline|stages|cluster|tests|configs|examples|docs)/[\w/.]+\.(?:py|yaml|md|json|csv))"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text()
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    assert not missing


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 110


def defined(path: Path) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else ()
            found |= {f"{node.name}.{n.name}" for n in inner if isinstance(n, ast.FunctionDef)}
    return found


def test_the_tour_names_what_is_there():
    text = (ROOT / "docs" / "tour.md").read_text()
    named = FUNCTION.findall(text)
    assert len(named) >= 25 and len(text.splitlines()) <= 80
    wrong = [f"{f}:{name}" for f, name in named if not (ROOT / f).exists() or name not in defined(ROOT / f)]
    assert not wrong
