"""Which tasks there are, of which kind, and in which folders below DIR their audio lies."""

from pathlib import Path

from examples.fetching.archives import Package
from examples.fetching.packages import pinned

HERE = Path(__file__).parent
TASKS = HERE / "tasks"
# name: kind, folders
SETS = {
    "pitch": ("class", ("notes",)),
    "instrument": ("class", ("notes",)),
    "beats": ("beats", ("songs",)),
    "drum": ("class", ("drums",)),
    "key": ("key", ("soundfonts", "tunes")),
    "chord": ("class", ("soundfonts", "chorales")),
    "composer": ("class", ("composers",)),
}
RENDERED = ("tunes", "chorales")


def packages(folder: str) -> tuple[Package, ...]:
    """The packages that a folder is filled from."""
    return pinned(HERE / "packages.csv", folder)
