"""One run at a time on one OUT: the second is refused with the name of the first."""

import _thread
import contextlib
import errno
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from stages.shards import objects
from stages.shards.storage import Storage

NAME = "run.lock"
BEAT_S = 5.0
STALE_S = 60.0  # without a beat the holder is dead; by the clock of who waits, who has seen none
FENCE_S = 30.0  # without a beat that arrived the holder gives up, before another can come in
WATCH_S, SAY_S = 1.0, 10.0
CHANGED = (objects.Changed, FileNotFoundError)  # what a write meets where its version is no longer there


@contextlib.contextmanager
def locked(out: Storage, say: Callable[[str], None] = print, part: str = "") -> Iterator[None]:
    """ValueError naming the holder when another run has OUT, or the same part of it; parts run side by side.

    Locally a kernel lock, which ends with its process. On an object store an object that its holder writes
    every `BEAT_S`; each write replaces the version before it or fails (If-Match), so that of two only one has
    it. A dead holder of this machine is followed at once, one elsewhere when `STALE_S` have passed without a
    beat; `say` gets the countdown. OSError within seconds when the lock is lost in the block."""
    with contextlib.ExitStack() as stack:
        own = f"run-{part}.lock" if part else NAME
        if out.is_local:
            stack.enter_context(_local(out, NAME, shared=bool(part)))
            if part:
                stack.enter_context(_local(out, own))
        else:
            stack.enter_context(Beating(out, say, own))
            others = [n for n in out.names("") if n.startswith("run-") and n.endswith(".lock")]
            if others := [NAME] if part else others:  # who comes next finds ours
                with ThreadPoolExecutor(len(others)) as pool:  # many dead parts are outwaited at once
                    list(pool.map(lambda other: Beating(out, say, other).left(), others))
        yield


def _own() -> dict:
    return {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _who(held: dict) -> str:
    try:
        return f"process {held['pid']} on {held['host']} since {held['since']}"
    except (KeyError, TypeError):
        return "another process"


def _parsed(data: bytes) -> dict:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(out: Storage, held: dict) -> ValueError:
    return ValueError(
        f"{out.root} is in use by another run ({_who(held)}): wait for it or stop it; nothing was changed"
    )


@contextlib.contextmanager
def _local(out: Storage, name: str, shared: bool = False) -> Iterator[None]:
    path, how = out.local(name), fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"{path} cannot be locked ({error.strerror}), nothing would keep a second run out: mount "
                    f"its file system with locks (NFS: the lock service, Lustre: -o flock), or move OUT"
                ) from None
            file.seek(0)
            raise _refusal(out, _parsed(file.read())) from None
        file.truncate(0)
        file.write(json.dumps(_own()).encode())
        file.flush()
        yield


class Beating:
    """The lock of an object store. At its end the object stays, marked as free: its `generation` grows by one
    with each holder."""

    def __init__(self, out: Storage, say: Callable[[str], None], name: str = NAME):
        self.out, self.say, self.where = out, say, out.path(name)
        self.entry = _own() | {"machine": _machine(), "token": uuid.uuid4().hex}
        if self.entry["machine"]:
            self.entry["born"] = _born(os.getpid())
        self.etag, self.lost = "", ""
        self._end, self._thread = threading.Event(), threading.Thread(target=self._keep, daemon=True)

    def left(self) -> tuple[dict, str]:
        """The entry and its version when nobody holds it any more; a refusal when somebody does."""
        while True:
            held, etag = objects.patiently(self._seen)
            ours = held.get("token") in (None, "", self.entry["token"])
            if ours or held.get("free") or (lives := _lives(held)) is False:
                return held, etag
            if lives:
                raise _refusal(self.out, held)
            if self._outwaited(held, etag):
                return held, etag

    def __enter__(self) -> None:
        while not self.etag:
            held, etag = self.left()
            if held.get("token") == self.entry["token"]:
                self.etag = etag  # our own, whose answer was lost
                break
            self.entry["generation"] = int(held.get("generation", 0)) + 1
            condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
            with contextlib.suppress(*CHANGED):  # another was faster: look again
                objects.patiently(partial(self._write, condition))
        self._thread.start()

    def __exit__(self, kind: type | None, *_) -> None:
        self._end.set()
        self._thread.join()
        if self.lost:
            if kind in (None, KeyboardInterrupt):
                raise OSError(self.lost) from None
            return
        with contextlib.suppress(OSError):  # the next run waits until it is stale
            self._write({"IfMatch": self.etag}, free=True)

    def _write(self, condition: dict[str, str], **more) -> None:
        data = json.dumps(self.entry | {"beat": time.time()} | more).encode()
        self.etag = objects.put(self.where, data, **condition)

    def _seen(self) -> tuple[dict, str]:
        try:
            data, etag = objects.get(self.where)
        except FileNotFoundError:
            return {}, ""
        return _parsed(data), etag

    def _outwaited(self, held: dict, etag: str) -> bool:
        """Whether the entry stayed as it was; False when its holder ended; a refusal at its first beat."""
        began, said = time.monotonic(), STALE_S + SAY_S
        while (left := began + STALE_S - time.monotonic()) > 0:
            if said - left >= SAY_S:
                said = left
                self.say(
                    f"{self.out.root}: no sign of life from {_who(held)} yet; taken over in {left:.0f} s"
                )
            time.sleep(min(left, WATCH_S))
            now, seen = objects.patiently(self._seen)
            if seen != etag:
                if seen and not now.get("free"):
                    raise _refusal(self.out, now)
                return False
        return True

    def _keep(self) -> None:
        last = time.monotonic()
        while not self._end.wait(BEAT_S):
            began = time.monotonic()
            try:
                self._write({"IfMatch": self.etag})
                last = began
            except CHANGED:
                with contextlib.suppress(OSError):
                    held, etag = self._seen()
                    if held.get("token") == self.entry["token"]:  # our own, whose answer was lost
                        self.etag, last = etag, began
                    else:
                        return self._stop(f"{_who(held)} took it over")
            except OSError as error:
                if time.monotonic() - last > FENCE_S:
                    return self._stop(f"the store does not answer: {error}")

    def _stop(self, why: str) -> None:
        self.lost = (
            f"{self.out.root} is no longer this run's ({why}): it was stopped; finished shards are kept, run "
            f"the same command again"
        )
        if not self._end.is_set():
            _thread.interrupt_main()


def _machine() -> str:
    """This boot of this machine and its space of process numbers, of which each container has its own; empty
    where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began, in clock ticks since the boot: numbers are used again."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _lives(held: dict) -> bool | None:
    """Whether the holder is a process of this machine that lives; None: of another one."""
    if not held.get("machine") or held["machine"] != _machine():
        return None
    try:
        return _born(held["pid"]) == held["born"]
    except (OSError, KeyError):
        return False
