"""Modules of a user that the nodes of a cluster do not have: those of a teacher of one's own."""

import site
import sys
import sysconfig
from pathlib import Path
from types import ModuleType


def own_modules(name: str) -> list[str]:
    """Files and folders of a module's package, and of what this process has imported from beside it. None of
    what is installed, which nodes have as well, and of this project, which is sent anyway."""
    top = sys.modules.get(name.partition(".")[0])
    installed, here = _installed(), _here()
    beside = {path.parent for path in _places(top) if path.resolve() not in here}
    beside = {folder for folder in beside if not {folder, folder.resolve()} & installed}
    found = set().union(*map(_places, list(sys.modules.values()))) if beside else set()
    return sorted(str(path) for path in found if path.parent in beside and path.resolve() not in here)


def _places(module: ModuleType | None) -> set[Path]:
    """The folders, or the file, of a package or module that is in no other."""
    name = getattr(module, "__name__", ".")
    if "." in name or name == "__main__":
        return set()
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None) or ""]
    paths = {Path(place).absolute() for place in places if place}
    return {path for path in paths if path.is_dir() or path.suffix == ".py"}


def _installed() -> set[Path]:
    places = [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()]
    return {form for place in map(Path, places) for form in (place.absolute(), place.resolve())}


def _here() -> set[Path]:
    root = Path(__file__).resolve().parent.parent
    return {root / name for name in ("pipeline", "stages", "cluster")}
