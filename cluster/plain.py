"""The stages of labelling in plain processes of this machine, without Ray: what `session` and `sharded` do on
a cluster, with the same rows, events and bytes."""

import ctypes
import multiprocessing
import os
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from cluster import chain
from cluster.crew import Node
from cluster.pools import (
    Session,
    StageSpec,
    available_cpus,
    check_gpus,
    check_machine,
    debugging,
    outcome,
)
from stages.label.machine import Kinds, machine
from stages.label.scan import probe_pool
from stages.shards.storage import Storage

NAME = "processes"
SPAWN = multiprocessing.get_context("spawn")  # a fork would share torch's threads and the driver's files
PR_SET_PDEATHSIG = 1
RETRIES = 3  # of a function whose process dies

preflight = check_gpus


@contextmanager
def session(cpus: int | None = None, own: str = "") -> Iterator[Session]:
    """`own`, a user's module, is on the path of every process of this machine."""
    import torch

    count = float(cpus or available_cpus())
    yield Session(count, torch.cuda.device_count(), count, psutil.virtual_memory().total)


def check_nodes(out: Storage, roots: list[str], kinds: Kinds | None = None) -> Callable[[dict], str]:
    """As `session.check_nodes`. The scan has read the audio on this machine, and OUT was written to."""
    check_machine("this machine", machine(), kinds)
    return lambda node: ""


def probe_all(files: Iterable[tuple], workers: int, roots: list[str]) -> Iterator[tuple[tuple, dict]]:
    """As `probing.probe_all`."""
    return probe_pool.probe_all(files, workers)


class Process:
    """Runs `target(pipe, *args)`. It dies with its driver, and leaves Ctrl-C to it."""

    def __init__(self, target: Callable, *args: Any, cpus: float, card: int | None):
        self.card = card
        self.pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_begin, args=(os.getpid(), theirs, target, *args), daemon=True)
        with _inherited(cpus, card):
            self._process.start()
        theirs.close()

    def alive(self) -> bool:
        return self._process.is_alive()

    def close(self, patience_s: float = 0.0) -> None:
        self.pipe.close()  # ends a worker that waits for a shard
        self._process.join(patience_s)
        self._process.kill()
        self._process.join()


@contextmanager
def _inherited(cpus: float, card: int | None) -> Iterator[None]:
    """As Ray has it: as many threads as CPUs, and one visible GPU for a worker that asked for it."""
    own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, int(cpus))))}
    if card is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        own["CUDA_VISIBLE_DEVICES"] = visible.split(",")[card] if visible else str(card)
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _begin(driver: int, pipe: Connection, target: Callable, *args: Any) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # it died before the line above
        return
    if not debugging():  # what a library prints would tear the driver's screen
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    with suppress(BrokenPipeError):  # the driver has closed it
        try:
            target(pipe, *args)
        except Exception as error:  # noqa: BLE001 - raised again in the driver
            error.add_note(traceback.format_exc())
            pipe.send(error)


def _serve(pipe: Connection, spec: StageSpec) -> None:
    """A worker of a stage: (shard, payload) → row, until the driver closes the pipe."""
    opening = ThreadPoolExecutor(1).submit(spec.make)  # the first shard reports an error of it
    while True:
        try:
            shard, payload = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        pipe.send(outcome(spec.name, shard, payload, opening.result))


def _once(pipe: Connection, work: Callable, args: tuple) -> None:
    pipe.send(("value", work(*args, lambda event: pipe.send(("event", event)))))


def _received(pipe: Connection) -> Any:
    """EOFError when its process died; what it raised is raised here."""
    try:
        message = pipe.recv()
    except ConnectionResetError:
        raise EOFError from None
    if isinstance(message, BaseException):
        raise message
    return message


class Crew:
    """Processes of this machine, as `chain.Crew`. A GPU worker gets the card that is the fullest of those
    with room."""

    def __init__(self, session: Session):
        self._here = Node(platform.node(), session.cpus, session.gpus, session.memory_bytes)
        self._held = [0.0] * int(session.gpus)  # of each card

    def nodes(self) -> list[Node]:
        return [self._here]

    def start(self, spec: StageSpec, cpus: float, node: Node) -> "Worker":
        card, need = None, spec.needs.gpus
        if need:
            card = max(
                range(len(self._held)), key=lambda i: (self._held[i] + need <= 1 + 1e-6, self._held[i])
            )
            self._held[card] += need
        return Worker(self, spec, card)

    def ended(self, busy: list["Worker"], timeout_s: float) -> list[tuple["Worker", dict | None]]:
        if not busy:
            time.sleep(timeout_s)
        by_pipe, found = {worker.process.pipe: worker for worker in busy}, []
        for pipe in wait(list(by_pipe), timeout_s):
            try:
                found.append((by_pipe[pipe], _received(pipe)))
            except EOFError:
                found.append((by_pipe[pipe], None))
        return found

    def lost(self, worker: "Worker") -> bool:
        return False

    def crowded(self, busy: list["Worker"]) -> list["Worker"]:
        return []

    def give_back(self, spec: StageSpec, card: int) -> None:
        self._held[card] -= spec.needs.gpus


class Worker:
    def __init__(self, crew: Crew, spec: StageSpec, card: int | None):
        self._crew, self._spec, self.node = crew, spec, platform.node()
        self.process = Process(_serve, spec, cpus=spec.needs.cpus, card=card)

    def begin(self, shard: str, payload: Any) -> bool:
        try:
            self.process.pipe.send((shard, payload))
        except OSError:
            return False
        return self.process.alive()

    def close(self, patience_s: float = 0.0) -> None:
        self.process.close(patience_s)
        if self.process.card is not None:
            self._crew.give_back(self._spec, self.process.card)


def run_chain(
    specs: list[StageSpec],
    shards: list[str],
    session: Session,
    attempts: int = 3,
    on_event: Callable[[dict], None] = lambda event: None,
    payload: Callable[[str], Any] = lambda shard: None,
) -> Iterator[dict]:
    """As `chain.run_chain`, in processes of this machine."""
    yield from chain.run_chain(specs, shards, Crew(session), attempts, on_event, payload)


def run_one_reporting(
    work: Callable[..., Any], on_event: Callable[[dict], None], *args: Any, cpus: float, gpus: float = 0
) -> Any:
    """As `sharded.run_one_reporting`."""
    for _ in range(1 + RETRIES):
        process = Process(_once, work, args, cpus=cpus, card=0 if gpus else None)
        try:
            while (message := _received(process.pipe))[0] == "event":
                on_event(message[1])
            return message[1]
        except EOFError:
            continue
        finally:
            process.close()
    raise OSError(f"the process of {work.__name__} died {1 + RETRIES} times (out of memory?): run again")
