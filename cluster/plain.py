"""The stages of labelling in plain processes of this machine, without Ray: what `session` and `sharded` do on
a cluster, with the same rows, events and bytes."""

import ctypes
import multiprocessing
import os
import platform
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from cluster.pools import (
    Session,
    StageSpec,
    available_cpus,
    check_gpus,
    debugging,
    outcome,
    passed_on,
    size_pools,
)
from stages.shards.storage import Storage

NAME = "processes"
SPAWN = multiprocessing.get_context("spawn")  # a fork would share torch's threads and the driver's files
PR_SET_PDEATHSIG = 1
RETRIES = 3  # of a function whose process dies
CLOSE_S = 5.0  # for a worker to end by itself

preflight = check_gpus


@contextmanager
def session(cpus: int | None = None) -> Iterator[Session]:
    import torch

    count = float(cpus or available_cpus())
    yield Session(count, torch.cuda.device_count(), count, psutil.virtual_memory().total)


def check_nodes(out: Storage, roots: list[str]) -> None:
    """Nothing: the scan has read the audio on this machine, and OUT was written to."""


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


def _serve(pipe: Connection, spec: StageSpec, attempts: int) -> None:
    """A worker of a stage: (shard, attempt) → row, until the driver closes the pipe."""
    opening = ThreadPoolExecutor(1).submit(spec.make)  # the first shard reports an error of it
    while True:
        try:
            shard, tried = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        pipe.send(outcome(spec.name, shard, opening.result, tried, attempts))


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


class Stage:
    """The shards that wait for a stage, and its workers."""

    def __init__(self, spec: StageSpec, attempts: int, on_event: Callable[[dict], None]):
        self.spec, self.attempts, self.on_event = spec, attempts, on_event
        self.waiting: deque[dict] = deque()  # rows of the chain
        self.tried: Counter[str] = Counter()
        self.idle: list[Process] = []
        self.busy: dict[Connection, tuple[Process, dict]] = {}

    def begin(self, process: Process) -> None:
        """Give it the next shard."""
        row = self.waiting.popleft()
        shard, name = row["shard"], self.spec.name
        self.tried[shard] += 1
        self.on_event(dict(event="begin", stage=name, shard=shard, host=platform.node(), started=time.time()))
        self.busy[process.pipe] = process, row
        with suppress(OSError):  # it is dead: `end` finds out
            process.pipe.send((shard, self.tried[shard]))

    def end(self, pipe: Connection) -> dict | None:
        """The row of a shard that a process has ended with; None when the process died, and another one
        is to try."""
        process, row = self.busy.pop(pipe)
        self.idle.append(process)
        shard = row["shard"]
        try:
            out = _received(pipe)
        except EOFError:
            self.idle.pop().close()
            if self.tried[shard] < self.attempts:
                self.waiting.appendleft(row)
                return None
            out = outcome(self.spec.name, shard, dict, self.attempts + 1, self.attempts)
        self.on_event({"event": "end", **out})
        return passed_on(row, self.spec.name, out)

    def close(self, patience_s: float = 0.0) -> None:
        processes = [*self.idle, *(process for process, _ in self.busy.values())]
        self.idle, self.busy = [], {}
        for process in processes:
            process.pipe.close()
        for process in processes:
            process.close(patience_s)


def shares(specs: list[StageSpec], session: Session) -> list[int]:
    """Workers of each stage: one, and while CPUs, GPUs and memory are left, one more where each has most to
    do."""
    pools = size_pools(specs, session.cpus, session.gpus, session.node_cpus)
    needs = [
        (pool.cpus, spec.needs.gpus, spec.needs.memory_gb) for pool, spec in zip(pools, specs, strict=True)
    ]
    left = [session.cpus, session.gpus, session.memory_bytes / 2**30]
    counts = [0] * len(specs)

    def able(i: int) -> bool:
        fits = all(need <= have + 1e-6 for need, have in zip(needs[i], left, strict=True))
        return not counts[i] or fits and counts[i] < pools[i].max_workers

    while chosen := [i for i in range(len(specs)) if able(i)]:
        i = max(chosen, key=lambda i: (not counts[i], specs[i].cpu_s / max(1, counts[i])))
        counts[i] += 1
        left = [have - need for need, have in zip(needs[i], left, strict=True)]
    return counts


def run_chain(
    specs: list[StageSpec],
    shards: list[str],
    session: Session,
    attempts: int = 3,
    on_event: Callable[[dict], None] = lambda event: None,
) -> Iterator[dict]:
    """As `sharded.run_chain`; events come in this thread."""
    stages = [Stage(spec, attempts, on_event) for spec in specs]
    stages[0].waiting.extend({"shard": shard} for shard in shards)
    try:
        while stages:
            yield from _work_off(stages, session)
            stages.pop(0).close(CLOSE_S)  # its CPUs go to the later ones
    finally:
        for stage in stages:
            stage.close()


def _work_off(stages: list[Stage], session: Session) -> Iterator[dict]:
    """Rows that leave the chain, until nothing is left for its first stage."""
    most = shares([stage.spec for stage in stages], session)
    for stage in stages:
        if not stage.idle and not stage.busy:  # all pools load their models at once
            stage.idle.append(_worker(stage, stages, session))
    while stages[0].waiting or stages[0].busy:
        for stage, count in zip(stages, most, strict=True):
            while stage.waiting and (stage.idle or len(stage.busy) < count):
                process = stage.idle.pop() if stage.idle else _worker(stage, stages, session)
                if process.alive():
                    stage.begin(process)
                else:  # while it was idle
                    process.close()
        for pipe in wait([pipe for stage in stages for pipe in stage.busy]):
            place = next(i for i, stage in enumerate(stages) if pipe in stage.busy)
            row = stages[place].end(pipe)
            if row and ("failed" in row or place + 1 == len(stages)):
                yield row
            elif row:
                stages[place + 1].waiting.append(row)


def _worker(stage: Stage, stages: list[Stage], session: Session) -> Process:
    """On the GPU that is the fullest of those with room."""
    need, card = stage.spec.needs.gpus, None
    if need:
        held = [0.0] * int(session.gpus)
        for other in stages:
            for process in (*other.idle, *(process for process, _ in other.busy.values())):
                if process.card is not None:
                    held[process.card] += other.spec.needs.gpus
        card = max(range(len(held)), key=lambda i: (held[i] + need <= 1 + 1e-6, held[i]))
    return Process(_serve, stage.spec, stage.attempts, cpus=stage.spec.needs.cpus, card=card)


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
