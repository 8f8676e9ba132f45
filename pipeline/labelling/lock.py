"""One run at a time on one OUT: the second is refused with the name of the first."""

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator

from stages.shards.storage import Storage

NAME = "run.lock"
BEAT_S = 20.0
STALE_S = 90.0
SETTLE_S = 2.0  # within it two that start at once have both written


@contextlib.contextmanager
def locked(out: Storage) -> Iterator[None]:
    """ValueError naming the holder when another run has OUT. Locally a kernel lock, which ends with its
    process; on an object store an object that is written again and again, free `STALE_S` after its run
    died."""
    with _local(out) if out.is_local else _beating(out):
        yield


def _own() -> dict:
    return {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _refusal(out: Storage, data: bytes) -> ValueError:
    try:
        held = json.loads(data)
        who = f"process {held['pid']} on {held['host']} since {held['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return ValueError(
        f"{out.root} is in use by another run ({who}): wait for it or stop it; nothing was changed"
    )


@contextlib.contextmanager
def _local(out: Storage) -> Iterator[None]:
    path = out.local(NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise _refusal(out, file.read()) from None
        file.truncate(0)
        file.write(json.dumps(_own()).encode())
        file.flush()
        yield


@contextlib.contextmanager
def _beating(out: Storage) -> Iterator[None]:
    token = uuid.uuid4().hex

    def beat() -> None:
        out.write(NAME, json.dumps(_own() | {"token": token, "beat": time.time()}).encode())

    def holder() -> dict:
        try:
            return json.loads(out.read(NAME))
        except (FileNotFoundError, ValueError):
            return {}

    held = holder()
    if time.time() - held.get("beat", 0) < STALE_S:
        raise _refusal(out, json.dumps(held).encode())
    beat()
    time.sleep(SETTLE_S)  # of two that start at once, the later writer has it
    held = holder()
    if held.get("token") != token:
        raise _refusal(out, json.dumps(held).encode())
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(BEAT_S):
            with contextlib.suppress(OSError):  # after one failure the next beat is still in time
                beat()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if holder().get("token") == token:
            out.delete(NAME)
