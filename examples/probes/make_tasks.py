"""How the files in tasks/ were made: `python -m examples.probes.make_tasks DIR [--task NAME …]`.

They are fixed: a probe reads them, and nothing runs this. DIR is what `examples.probes.fetch` brought.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from examples.probes.making import composers, drums, notes, songs, tunes
from examples.probes.rendering import Render, plan, save
from examples.probes.sets import RENDERED, SETS, TASKS
from stages.evaluate.probe.task import Item, write


def rendered(name: str, make: Callable[[], tuple[list[Item], list[Render]]]) -> Callable[[Path], list[Item]]:
    """A maker that writes its lines of renders.csv too, and leaves the other folders' there."""

    def maker(root: Path) -> list[Item]:
        items, renders = make()
        others = [job for folder in RENDERED if folder != SETS[name][1][-1] for job in plan(folder)]
        save(sorted([*others, *renders], key=lambda job: job.audio))
        return items

    return maker


MAKERS = {
    "pitch": notes.pitch,
    "instrument": notes.instrument,
    "beats": songs.beats,
    "drum": drums.drum,
    "key": rendered("key", tunes.key),
    "chord": rendered("chord", tunes.chord),
    "composer": composers.composer,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--task", nargs="+", choices=MAKERS, default=tuple(MAKERS))
    arguments = parser.parse_args(argv)
    for name in arguments.task:
        items = MAKERS[name](arguments.folder)
        write(TASKS / f"{name}.csv", items)
        print(f"{name}: {len(items)} items, {len({item.group for item in items})} groups")


if __name__ == "__main__":
    main()
