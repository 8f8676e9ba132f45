"""Fetch real music from Debian packages: `python -m examples.music.fetch DIR`, or `make music`.

No root, and no host but those that the system's own apt knows. A finished package is one folder:

    DIR/NAME/…            its music, as the package lays it out below usr/share
    DIR/NAME/copyright    its licence and authors
    DIR/NAME/package.json version, sha256 of the .deb, and the size of every file: what says finished
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import av

from pipeline.labelling.lock import locked
from stages.shards.storage import Storage, fsync

AUDIO = {".ogg", ".opus", ".oga", ".mp3", ".wav", ".flac", ".m4a"}
SHORTEST_S = 20.0  # shorter files of these packages are the games' sound effects
MARKER, COPYRIGHT = "package.json", "copyright"


@dataclass(frozen=True)
class Package:
    """One package, pinned to the bytes of its .deb."""

    name: str
    version: str
    bytes: int
    sha256: str
    licence: str


def packages(which: str) -> tuple[Package, ...]:
    """The packages of one set, `default` or `more`, from packages.csv."""
    with open(Path(__file__).with_name("packages.csv"), newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("set") == which]
    return tuple(Package(**{**row, "bytes": int(row["bytes"])}) for row in rows)


# Debian 12; sizes and sha256 from its signed index, seen equal on the downloaded files.
PACKAGES, MORE = packages("default"), packages("more")


def fetch(
    folder: Path, packages: tuple[Package, ...], any_version: bool = False, say: Callable[[str], None] = print
) -> None:
    """Bring every package into `folder`; those that are whole there are left alone.

    Raises ValueError, before anything is fetched, for what the user can mend (no apt, another
    version), and OSError when a download fails or is not what was promised. What came is kept.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ValueError(
                f"this machine has no {tool}: the larger corpus comes in Debian packages; run this on Debian "
                "or Ubuntu, or label music of your own (make labels AUDIO=/music)"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(Storage(folder)):
        for left in folder.glob(".*.attempt"):  # of a run that was killed: a scan would take it for music
            shutil.rmtree(left)
        wanted = [p for p in packages if finished(folder, p, any_version) is None]
        chosen = {p.name: p for p in offered(wanted, any_version, say)}
        for number, package in enumerate(packages, 1):
            head = f"[{number}/{len(packages)}] {package.name}"
            if package.name in chosen:
                say(f"{head}: fetching {chosen[package.name].bytes / 1e6:.1f} MB")
                bring(folder, chosen[package.name], say)
            about = finished(folder, package, any_version)
            hours = sum(s["seconds"] for s in about["music"].values()) / 3600
            say(
                f"{head}: {len(about['music'])} tracks, {hours:.2f} h, {package.licence}"
                + ("" if package.name in chosen else " (was there)")
            )


def finished(folder: Path, package: Package, any_version: bool) -> dict | None:
    """What the marker says, if it speaks of this .deb and every file it names has the size it names."""
    home = folder / package.name
    try:
        about = json.loads((home / MARKER).read_text())
        whole = all((home / name).stat().st_size == size for name, size in about["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return about if whole and (any_version or about["sha256"] == package.sha256) else None


def offered(packages: list[Package], any_version: bool, say: Callable[[str], None]) -> list[Package]:
    """The packages as this system offers them: the pinned bytes, or with `any_version` its own candidates."""
    found, other = [], []
    for package in packages:
        stanzas = index(package.name)
        pinned = next((s for s in stanzas if s["SHA256"] == package.sha256), None)
        if pinned is None:
            other.append(f"{package.name} {stanzas[0]['Version']} instead of {package.version}")
        own = pinned or stanzas[0]
        found.append(replace(package, version=own["Version"], bytes=int(own["Size"]), sha256=own["SHA256"]))
    if other and not any_version:
        raise ValueError(
            f"this system offers other builds than the pinned ones ({'; '.join(other)}): nothing was "
            "fetched; --any-version takes what it offers, with the checksums of its own signed index"
        )
    if other:
        say(f"other builds than the pinned ones: {'; '.join(other)}")
    return found


def index(name: str) -> list[dict[str, str]]:
    """What apt's signed index says of a package, newest version first; ValueError when it knows none."""
    done = subprocess.run(
        ["apt-cache", "show", name], capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}
    )
    stanzas = []
    for text in done.stdout.split("\n\n"):
        lines = (line.partition(": ") for line in text.splitlines() if not line.startswith(" "))
        stanza = {key: value.strip() for key, _, value in lines}
        # an installed package without an archive has none
        if {"Version", "Size", "SHA256"} <= stanza.keys():
            stanzas.append(stanza)
    if not stanzas:
        raise ValueError(
            f"apt knows no package {name}: run `apt-get update` as root (on Ubuntu with the "
            f"`universe` component)"
        )
    return stanzas


def bring(folder: Path, package: Package, say: Callable[[str], None]) -> None:
    """Download, check and unpack one package; its folder appears whole."""
    attempt = folder / f".{package.name}.attempt"
    (attempt / "tree").mkdir(parents=True)
    try:
        deb = download(attempt, package, say)
        unpacked = subprocess.run(["dpkg-deb", "-x", deb, attempt / "tree"], capture_output=True, text=True)
        if unpacked.returncode:
            raise OSError(f"{package.name} cannot be unpacked: {unpacked.stderr.strip()}")
        new, home = attempt / package.name, folder / package.name
        keep(attempt / "tree", new, package)
        shutil.rmtree(home, ignore_errors=True)  # another version's, or a damaged one
        os.replace(new, home)
        fsync(folder)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def download(attempt: Path, package: Package, say: Callable[[str], None]) -> Path:
    """The .deb in the folder `attempt`, with the promised bytes."""
    argv = ["apt-get", "download", f"{package.name}={package.version}"]
    with open(attempt / "apt.log", "w+") as log:
        child = subprocess.Popen(
            argv,
            cwd=attempt,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"LC_ALL": "C"},
        )
        try:
            said = time.monotonic()
            while child.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    have = sum(p.stat().st_size for p in attempt.glob("*.deb"))
                    say(f"    {have / 1e6:.1f} of {package.bytes / 1e6:.1f} MB")
        finally:
            child.kill()
            child.wait()
        log.seek(0)
        words = [line.strip() for line in log if line.startswith("E:")]
    debs = list(attempt.glob("*.deb"))
    if child.returncode or len(debs) != 1:
        raise OSError(
            f"{package.name} could not be downloaded: "
            f"{' '.join(words) or f'apt-get ended with {child.returncode}'}; "
            f"the same command goes on from here"
        )
    with open(debs[0], "rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != package.sha256:
        raise OSError(
            f"{package.name}: {debs[0].stat().st_size} bytes with sha256 {seen[:12]}… came, expected "
            f"{package.bytes} with {package.sha256[:12]}…: it was not kept; try again"
        )
    return debs[0]


def keep(tree: Path, new: Path, package: Package) -> None:
    """Move a package's music and its copyright file to `new`, and write the marker, last."""
    share, music = tree / "usr" / "share", {}
    for path in sorted(share.rglob("*")):
        if path.suffix.lower() in AUDIO and path.is_file() and not path.is_symlink():
            seconds = length_s(path)
            if seconds >= SHORTEST_S:
                name = path.relative_to(share).as_posix()
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(new / name)
                music[name] = {"seconds": round(seconds, 3)}
    copyright = share / "doc" / package.name / COPYRIGHT
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


def main(argv: list[str] | None = None) -> int:
    """Exit codes as `overtone`'s: 2 a mistake the user can mend, 1 a failure, 130 Ctrl-C."""
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
    try:
        fetch(arguments.folder, PACKAGES + MORE if arguments.all else PACKAGES, arguments.any_version)
    except ValueError as error:
        print(f"music: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"music: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nmusic: stopped; finished packages are kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    print(
        f"{arguments.folder}: ready for make labels AUDIO={arguments.folder} "
        f"CONFIG=configs/labels/mel_rvq.yaml"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
