"""One package's archive: what is offered, the download, and what is inside."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

MUSIC, COPYRIGHT = "ogg opus oga mp3 wav flac m4a", "copyright"
TOOLS = {"deb": ("apt-get", "apt-cache", "dpkg-deb"), "npm": ("npm",)}
REMEDY = {
    "deb": "the larger corpus comes in Debian packages; run this on Debian or Ubuntu, or label music of your "
    "own (make labels AUDIO=/music)",
    "npm": "the recorded notes come in npm packages; install Node.js, or leave them out (--task beats …)",
}


@dataclass(frozen=True)
class Package:
    """One package, pinned to the bytes of its archive, and what is taken from it."""

    name: str
    version: str
    bytes: int
    sha256: str
    licence: str
    source: str = "deb"  # or npm
    take: str = MUSIC  # endings of the files that are kept
    shortest_s: float = 20.0  # shorter files of most packages are the games' sound effects


def need_tools(packages: Iterable[Package]) -> None:
    for source in dict.fromkeys(package.source for package in packages):
        for tool in TOOLS[source]:
            if shutil.which(tool) is None:
                raise ValueError(f"this machine has no {tool}: {REMEDY[source]}")


def offered(packages: list[Package], any_version: bool, say: Callable[[str], None]) -> list[Package]:
    """The packages as this system offers them: the pinned bytes, or with `any_version` its own candidates.
    npm offers every version that ever was, so its pins are taken as they are."""
    found, other = [p for p in packages if p.source == "npm"], []
    for package in (p for p in packages if p.source == "deb"):
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


def download(attempt: Path, package: Package, say: Callable[[str], None]) -> Path:
    """The archive in the folder `attempt`, with the promised bytes."""
    pattern, argv = {
        "deb": ("*.deb", ["apt-get", "download", f"{package.name}={package.version}"]),
        "npm": ("*.tgz", ["npm", "pack", "--silent", f"{package.name}@{package.version}"]),
    }[package.source]
    with open(attempt / "download.log", "w+") as log:
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
                    have = sum(p.stat().st_size for p in attempt.glob(pattern))
                    say(f"    {have / 1e6:.1f} of {package.bytes / 1e6:.1f} MB")
        finally:
            child.kill()
            child.wait()
        log.seek(0)
        words = [line.strip() for line in log if line.startswith(("E:", "npm error"))]
    archives = list(attempt.glob(pattern))
    if child.returncode or len(archives) != 1:
        raise OSError(
            f"{package.name} could not be downloaded: "
            f"{' '.join(words) or f'{argv[0]} ended with {child.returncode}'}; "
            f"the same command goes on from here"
        )
    with open(archives[0], "rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != package.sha256:
        raise OSError(
            f"{package.name}: {archives[0].stat().st_size} bytes with sha256 {seen[:12]}… came, expected "
            f"{package.bytes} with {package.sha256[:12]}…: it was not kept; try again"
        )
    return archives[0]


def unpack(attempt: Path, archive: Path, package: Package) -> tuple[Path, Path]:
    """The folder of what is inside, and the file that says whose it is."""
    tree = attempt / "tree"
    tree.mkdir()
    if package.source == "npm":
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(tree, filter="data")
        except tarfile.TarError as error:
            raise OSError(f"{package.name} cannot be unpacked: {error}") from None
        return tree / "package", tree / "package" / "README.md"
    done = subprocess.run(["dpkg-deb", "-x", archive, tree], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{package.name} cannot be unpacked: {done.stderr.strip()}")
    share = tree / "usr" / "share"
    return share, share / "doc" / package.name / COPYRIGHT
