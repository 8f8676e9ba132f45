"""Temporary files: gone with their process, or with the next one."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.shards import scratch
from tests.conftest import ROOT

WRITER = """
import sys
from stages.shards import scratch
with scratch.directory() as folder:
    open(f"{folder}/half", "w").write("x")
    open(scratch.folder() / "other", "w").write("x")
    print(scratch.folder(), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def begin(tmp_path):
    """A process with temporary files in tmp_path."""
    running = []

    def start() -> tuple[subprocess.Popen, Path]:
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([sys.executable, "-c", WRITER], cwd=ROOT, env=environment, **pipes))
        return running[-1], Path(running[-1].stdout.readline().strip())

    yield start
    for process in running:
        process.kill()
        process.communicate()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_left_at_the_end_of_a_process(begin, tmp_path):
    process, folder = begin()
    assert files(folder) == {"half", "other"} and folder.parent == tmp_path / f"overtone-{os.getuid()}"
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    process.communicate("end\n")
    assert process.returncode == 0 and not list(folder.parent.iterdir())


def test_what_a_killed_process_left_goes_when_another_begins_and_the_living_keep_theirs(begin):
    (dead, first), (_, second) = begin(), begin()
    dead.kill()
    dead.wait()
    assert files(first) == {"half", "other"}
    _, third = begin()
    assert not first.exists() and files(second) == files(third) == {"half", "other"}
    assert files(first.parent) == {
        "half",
        "other",
        f"{second.name}{scratch.LOCK}",
        f"{third.name}{scratch.LOCK}",
    }


def test_a_fork_has_its_own_folder_and_leaves_its_parents(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    mine = scratch.folder()
    (mine / "f").write_text("x")
    if not (child := os.fork()):
        try:
            ok = scratch.folder() != mine
            scratch._remove(mine, mine.with_name(mine.name + scratch.LOCK), os.getppid())
        finally:
            os._exit(not ok)
    assert os.waitpid(child, 0)[1] == 0
    assert (mine / "f").exists() and scratch.folder() == mine


def test_a_lock_swept_between_its_making_and_its_locking_is_made_again(tmp_path, monkeypatch):
    lock, flock = tmp_path / "a.lock", fcntl.flock

    def late(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(handle, how)
        lock.unlink()

    monkeypatch.setattr(fcntl, "flock", late)
    assert scratch._held(lock) is None and scratch._held(lock) is not None and scratch.sweep(tmp_path) == 0


def test_where_a_file_system_has_no_locks_nothing_is_swept(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", flock)
    own = scratch.folder()
    assert own.is_dir() and scratch.sweep(own.parent) == 0 and own.is_dir()


SHARER = """
import sys
from stages.shards import scratch
folder = scratch.shared("tars")
(folder / sys.argv[1]).touch()
print(folder, flush=True)
sys.stdin.readline()
"""


def test_a_shared_folder_is_there_as_long_as_one_of_its_processes_is(tmp_path):
    def begin(name: str) -> tuple[subprocess.Popen, Path]:
        argv = [sys.executable, "-c", SHARER, name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        process = subprocess.Popen(argv, cwd=ROOT, env=environment, **pipes)
        return process, Path(process.stdout.readline().strip())

    (one, folder), (two, same) = begin("one"), begin("two")
    assert folder == same and files(folder) == {"one", "two"}
    one.communicate("end\n")
    assert files(folder) == {"one", "two"}, "the other still uses it"
    three, _ = begin("three")
    two.kill()
    two.wait()
    assert files(folder) == {"one", "two", "three"}
    three.communicate("end\n")
    assert not list(folder.parent.iterdir()), "the last one has removed it, and what the killed one left"
    four, _ = begin("four")
    four.kill()
    four.wait()
    five, _ = begin("five")
    assert files(folder) == {"five"}, "what a killed one left goes when another begins"
    five.communicate("end\n")
    assert not list(folder.parent.iterdir())
