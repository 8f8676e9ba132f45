"""Temporary files that outlive no process: one folder below TMPDIR for each, removed at its end, or, where it
was killed, by the next process that makes one."""

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import uuid
from pathlib import Path

LOCK = ".lock"  # ends the name of the file that a process holds as long as it lives, beside its folder


def folder() -> Path:
    """This process's own; a fork gets another one."""
    return _folder(os.getpid(), tempfile.gettempdir())


def shared(name: str) -> Path:
    """One for all processes of this machine that ask for it, as long as one of them lives."""
    return _shared(os.getpid(), tempfile.gettempdir(), name)


def directory() -> tempfile.TemporaryDirectory:
    """A folder for a `with` block."""
    return tempfile.TemporaryDirectory(dir=folder())


@functools.cache
def _folder(pid: int, place: str) -> Path:
    base = Path(place, f"overtone-{os.getuid()}")
    base.mkdir(mode=0o700, exist_ok=True)
    sweep(base)
    own = base / f"{pid}-{uuid.uuid4().hex[:12]}"
    while _held(lock := own.with_name(own.name + LOCK)) is None:
        pass
    own.mkdir()
    atexit.register(_remove, own, lock, pid)
    return own


@functools.cache
def _shared(pid: int, place: str, name: str) -> Path:
    base = _folder(pid, place).parent
    own = base / name
    while (handle := _held(own.with_name(own.name + LOCK), fcntl.LOCK_SH)) is None:
        pass
    own.mkdir(exist_ok=True)
    atexit.register(_leave, base, handle, pid)
    return own


def _leave(base: Path, handle: int, pid: int) -> None:
    """The last one of those that share a folder removes it."""
    if os.getpid() == pid:
        os.close(handle)
        sweep(base)


def sweep(base: Path) -> int:
    """Remove what dead processes left; how many they were. The kernel frees a file lock with its process."""
    dead = 0
    for lock in base.glob(f"*{LOCK}"):
        try:
            handle = os.open(lock, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_name(lock.name.removesuffix(LOCK)), ignore_errors=True)
            lock.unlink(missing_ok=True)
            dead += 1
        except OSError:
            pass  # it lives, or this file system has no locks: then nothing is ever swept
        finally:
            os.close(handle)
    return dead


def _held(lock: Path, how: int = fcntl.LOCK_EX) -> int | None:
    """The handle of a lock file that is ours now; None if it was swept between its making and its locking."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)  # left open: held until the process ends
    with contextlib.suppress(OSError):  # no locks on this file system: nobody will take it for dead
        fcntl.flock(handle, how)
    if lock.exists() and os.path.samestat(os.fstat(handle), os.stat(lock)):
        return handle
    os.close(handle)
    return None


def _remove(own: Path, lock: Path, pid: int) -> None:
    if os.getpid() == pid:  # not at the end of a fork of it
        shutil.rmtree(own, ignore_errors=True)
        lock.unlink(missing_ok=True)
