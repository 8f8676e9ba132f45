"""Fetch real music from Debian packages: `python -m examples.music.fetch DIR`, or `make music`.

No root, and no host but those that the system's own apt knows. What a finished package looks like, and how
one comes: `examples/fetching/packages.py`.
"""

import argparse
import sys
from pathlib import Path

from examples.fetching.packages import exit_code, fetch, pinned

# Debian 12; sizes and sha256 from its signed index, seen equal on the downloaded files.
PACKAGES, MORE = (pinned(Path(__file__).with_name("packages.csv"), which) for which in ("default", "more"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.music.fetch", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--all", action="store_true", help=f"{len(MORE)} packages more")
    parser.add_argument(
        "--any-version",
        action="store_true",
        help="take what this system offers where it is not the pinned build",
    )
    arguments = parser.parse_args(argv)

    def work() -> None:
        packages = PACKAGES + MORE if arguments.all else PACKAGES
        fetch(arguments.folder, packages, arguments.any_version)
        print(
            f"{arguments.folder}: ready for make labels AUDIO={arguments.folder} "
            f"CONFIG=configs/labels/mel_rvq.yaml"
        )

    return exit_code("music", work)


if __name__ == "__main__":
    sys.exit(main())
