"""How the files in tasks/ were made: `python -m examples.probes.make_tasks DIR [--task NAME …]`.

They are fixed: a probe reads them, and nothing runs this. DIR is what `examples.probes.fetch` brought.
"""

import argparse
from pathlib import Path

from examples.probes.making import drums, notes, songs
from examples.probes.sets import TASKS
from stages.evaluate.probe.task import write

MAKERS = {
    "pitch": notes.pitch,
    "instrument": notes.instrument,
    "beats": songs.beats,
    "drum": drums.drum,
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
