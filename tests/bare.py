"""A Python that finds some packages only, as on a machine where nothing else is installed: by a
`sitecustomize` on PYTHONPATH, so in every process that a command starts."""

import re
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cluster.md"
LABELS, TRAINING, MODEL = "`overtone labels --plain`", "`python -m stages.pretrain`", "export, features"
TORCH_NEEDS = "filelock fsspec mpmath networkx setuptools sympy"  # installed with it
OWN = ("pipeline", "stages", "cluster", "tests", "examples")
SITE = """
import sys
from importlib.machinery import PathFinder

class Found(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {hidden!r} or {allowed!r} and not (
            top in {allowed!r} or top in sys.stdlib_module_names or top.startswith("_")
        ):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Found if finder is PathFinder else finder for finder in sys.meta_path]
"""


def _written(folder: Path, hidden: Iterable[str] = (), allowed: Iterable[str] = ()) -> dict[str, str]:
    folder.mkdir(parents=True)
    text = SITE.format(hidden=tuple(hidden), allowed=tuple(allowed))
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


def without(folder: Path, *modules: str) -> dict[str, str]:
    """The environment of processes that find no such modules."""
    return _written(folder, hidden=modules)


def only(folder: Path, packages: Iterable[str]) -> dict[str, str]:
    """The environment of processes that find these packages, by the names pip knows, and no other."""
    wanted = {plain_name(package) for package in packages}
    found = packages_distributions().items()
    modules = [module for module, owners in found if wanted & set(map(plain_name, owners))]
    return _written(folder, allowed=[*modules, *OWN])


def plain_name(package: str) -> str:
    return re.sub("[-_.]+", "-", package).lower()


def listed(*rows: str) -> list[str]:
    """The packages in these rows of the page's table."""
    cells = [
        re.search(rf"^\| {re.escape(row)} \| (.+) \|$", PAGE.read_text(), re.MULTILINE)[1] for row in rows
    ]
    return [name for cell in (*cells, TORCH_NEEDS) for name in re.findall(r"[\w-]+", cell)]
