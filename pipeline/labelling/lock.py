"""One run at a time on one OUT: the second is refused, and told who holds it."""

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
SETTLE_S = 2.0  # two that start at once have both written by then


@contextlib.contextmanager
def locked(out: Storage) -> Iterator[None]:
    """Hold OUT for the duration of the block; ValueError naming the holder when another run has it.

    Locally a kernel lock, which ends with its process, however that ends. On an object store a
    beating object, free again `STALE_S` seconds after its run died.
    """
    with _local(out) if out.is_local else _beating(out):
        yield


def _me() -> dict:
    return {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _refuse(out: Storage, data: bytes) -> ValueError:
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
            raise _refuse(out, file.read()) from None
        file.truncate(0)
        file.write(json.dumps(_me()).encode())
        file.flush()
        yield


@contextlib.contextmanager
def _beating(out: Storage) -> Iterator[None]:
    token = uuid.uuid4().hex

    def beat() -> None:
        out.write(NAME, json.dumps(_me() | {"token": token, "beat": time.time()}).encode())

    def holder() -> dict:
        try:
            return json.loads(out.read(NAME))
        except (FileNotFoundError, ValueError):
            return {}

    held = holder()
    if time.time() - held.get("beat", 0) < STALE_S:
        raise _refuse(out, json.dumps(held).encode())
    beat()
    time.sleep(SETTLE_S)  # of two that start at once, the one whose object stays has it
    held = holder()
    if held.get("token") != token:
        raise _refuse(out, json.dumps(held).encode())
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(BEAT_S):
            # a store that fails once: the next beat comes before the lock is stale
            with contextlib.suppress(OSError):
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
