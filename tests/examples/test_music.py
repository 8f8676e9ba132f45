"""Fetching the larger corpus, without network: an `apt-get` that copies a small package made here."""

import hashlib
import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from examples.fetching.archives import Package
from examples.music import fetch

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb (Debian and Ubuntu)")

FAKES = {
    "apt-get": """#!/bin/sh
[ "$1" = download ] || exit 100
name="${2%%=*}"
echo "$2" >> "$SHELF/downloads"
[ -e "$SHELF/offline" ] && { echo "E: Failed to fetch $name" >&2; exit 100; }
cp "$SHELF/$name.deb" ./"${name}_1-1_all.deb"
""",
    "apt-cache": """#!/bin/sh
cat "$SHELF/$2.index" 2>/dev/null || { echo "E: No packages found" >&2; exit 100; }
""",
}


def build(shelf, name: str, tracks: dict[str, float]) -> Package:
    """A .deb of noise tracks (name → seconds), a link, a text and a copyright file; and its index."""
    tree = shelf / f"{name}-tree"
    home = tree / "usr" / "share" / "games" / name
    for track, seconds in tracks.items():
        (home / track).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(track)).uniform(-0.1, 0.1, int(8000 * seconds))
        soundfile.write(home / track, noise, 8000)
    (home / "notes.txt").write_text("no music")
    (home / "again.wav").symlink_to(next(iter(tracks)))
    (tree / "usr" / "share" / "doc" / name).mkdir(parents=True)
    (tree / "usr" / "share" / "doc" / name / "copyright").write_text(f"licence of {name}")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1-1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: noise\n"
    )
    deb = shelf / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True)
    package = Package(name, "1-1", deb.stat().st_size, hashlib.sha256(deb.read_bytes()).hexdigest(), "free")
    index(shelf, package)
    return package


def index(shelf, package: Package) -> None:
    (shelf / f"{package.name}.index").write_text(
        f"Package: {package.name}\nVersion: {package.version}\nDescription-en: noise\n Size: of no matter\n"
        f"Size: {package.bytes}\nSHA256: {package.sha256}\n\n"
    )


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A mirror in a folder, and the tools that take from it."""
    shelf, tools = tmp_path / "shelf", tmp_path / "tools"
    shelf.mkdir()
    tools.mkdir()
    for name, text in FAKES.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SHELF", str(shelf))
    return shelf


@pytest.fixture
def packages(shelf):
    return (
        build(shelf, "a-music", {"win/long one.wav": 21, "effect.wav": 2}),
        build(shelf, "b-music", {"track.wav": 20.5}),
    )


def downloads(shelf) -> list[str]:
    log = shelf / "downloads"
    return log.read_text().split() if log.exists() else []


def test_music_and_copyright_of_each_package_lie_in_its_folder(tmp_path, shelf, packages, capsys):
    fetch.fetch(tmp_path / "music", packages)
    found = {
        str(p.relative_to(tmp_path / "music")) for p in (tmp_path / "music").rglob("*") if p.is_file()
    } - {"run.lock"}
    assert found == {
        "a-music/games/a-music/win/long one.wav",
        "a-music/copyright",
        "a-music/package.json",
        "b-music/games/b-music/track.wav",
        "b-music/copyright",
        "b-music/package.json",
    }
    assert (tmp_path / "music/a-music/copyright").read_text() == "licence of a-music"
    assert "[2/2] b-music: 1 tracks, 0.01 h, free" in capsys.readouterr().out


def test_finished_packages_are_not_fetched_again(tmp_path, shelf, packages):
    folder = tmp_path / "music"
    (shelf / "b-music.deb").rename(shelf / "later")
    with pytest.raises(OSError, match="b-music could not be downloaded"):
        fetch.fetch(folder, packages)
    (shelf / "later").rename(shelf / "b-music.deb")
    (folder / ".b-music.attempt").mkdir()  # what a killed run leaves
    fetch.fetch(folder, packages)
    fetch.fetch(folder, packages)
    assert downloads(shelf) == ["a-music=1-1", "b-music=1-1", "b-music=1-1"]
    assert not list(folder.glob(".*"))


def test_a_package_that_lost_a_file_is_fetched_again(tmp_path, shelf, packages):
    fetch.fetch(tmp_path, packages)
    track = tmp_path / "b-music/games/b-music/track.wav"
    track.write_bytes(track.read_bytes()[:1000])
    fetch.fetch(tmp_path, packages)
    assert downloads(shelf) == ["a-music=1-1", "b-music=1-1", "b-music=1-1"]
    assert soundfile.info(track).duration == 20.5


def test_other_bytes_than_promised_are_refused_and_not_kept(tmp_path, shelf, packages):
    shutil.copy(shelf / "a-music.deb", shelf / "b-music.deb")
    with pytest.raises(OSError, match=r"b-music: \d+ bytes with sha256 .* came, expected"):
        fetch.fetch(tmp_path / "music", packages)
    assert not (tmp_path / "music/b-music").exists() and (tmp_path / "music/a-music").exists()
    assert not list((tmp_path / "music").glob(".*"))


def test_another_build_is_refused_at_once_and_taken_when_asked(tmp_path, shelf, packages, capsys):
    pinned = (packages[0], Package("b-music", "0-9", 5, "0" * 64, "free"))
    with pytest.raises(ValueError, match="b-music 1-1 instead of 0-9.*--any-version"):
        fetch.fetch(tmp_path / "music", pinned)
    assert downloads(shelf) == []
    fetch.fetch(tmp_path / "music", pinned, any_version=True)
    fetch.fetch(tmp_path / "music", pinned, any_version=True)
    assert downloads(shelf) == ["a-music=1-1", "b-music=1-1"]
    assert "other builds than the pinned ones: b-music 1-1 instead of 0-9" in capsys.readouterr().out


def test_with_any_version_the_bytes_must_still_be_those_of_the_index(tmp_path, shelf, packages):
    index(shelf, Package("b-music", "1-1", 5, "f" * 64, "free"))
    with pytest.raises(OSError, match="b-music: .* expected 5 with ffffffffffff"):
        fetch.fetch(tmp_path / "music", packages, any_version=True)


def test_the_command_says_one_sentence_for_what_a_user_can_mend(tmp_path, shelf, monkeypatch, capsys):
    assert fetch.main([str(tmp_path / "music")]) == 2  # this apt knows none of the real packages
    assert "apt knows no package warzone2100-music: run `apt-get update`" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert fetch.main([str(tmp_path / "music")]) == 2
    error = capsys.readouterr().err
    assert "this machine has no apt-get" in error and error.count("\n") == 1


def test_a_failed_download_ends_with_apts_own_words(tmp_path, shelf, packages, monkeypatch, capsys):
    (shelf / "offline").touch()
    monkeypatch.setattr(fetch, "PACKAGES", packages)
    assert fetch.main([str(tmp_path / "music")]) == 1
    assert "E: Failed to fetch a-music; the same command goes on from here" in capsys.readouterr().err


def test_pins_are_whole():
    pins = fetch.PACKAGES + fetch.MORE
    assert len({p.name for p in pins}) == len(pins) == 14
    assert all(len(p.sha256) == 64 and p.bytes > 1e6 for p in pins)
    assert 300e6 < sum(p.bytes for p in fetch.PACKAGES) < 305e6
