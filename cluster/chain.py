"""Shards through a chain of stages: which worker does what, where, and what becomes of a shard whose worker,
node or store fails. The same for Ray (`sharded.py`) and plain processes (`plain.py`), which give a crew."""

import heapq
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from cluster.pools import Session, StageSpec, passed_on, shares, size_pools

LOOK_S = 5.0  # between looks for nodes that came or went
PAUSE_S = 2.0  # before what failed for a while is tried again: doubled each time, and as much again by chance
CLOSE_S = 5.0  # for a worker to end by itself


class Node(NamedTuple):
    name: str
    cpus: float
    gpus: float
    memory_bytes: float
    host: str = ""  # for people


class Worker(Protocol):
    """A process that has opened a stage, or is opening it."""

    node: str

    def begin(self, shard: str, payload: Any) -> bool:
        """False when it died while it was idle."""

    def close(self, patience_s: float = 0.0) -> None: ...


class Crew(Protocol):
    def nodes(self) -> list[Node]:
        """Those that may be used now, from a look no older than `LOOK_S`."""

    def start(self, spec: StageSpec, cpus: float, node: Node) -> Worker: ...

    def ended(self, busy: list[Worker], timeout_s: float) -> list[tuple[Worker, dict | None]]:
        """What some of these workers answered, as `pools.outcome`; None: it died. Empty after the time."""

    def lost(self, worker: Worker) -> bool:
        """Whether a dead worker's node is gone too: no fault of its shard."""


class Stage:
    """The shards that wait for a stage, and its workers."""

    def __init__(self, spec: StageSpec):
        self.spec, self.cpus, self.most = spec, spec.needs.cpus, 1
        self.waiting: deque[dict] = deque()  # rows of the chain
        self.again: deque[dict] = deque()  # those that failed before, and `away`, where
        self.later: list[tuple[float, int, dict]] = []  # a heap of such, by the time from which on they wait
        self.idle: list[Worker] = []
        self.busy: dict[Worker, dict] = {}
        self.tried, self.died, self.failed = Counter(), Counter(), Counter()  # of each shard
        self.barred: dict[str, str] = {}  # nodes on which no worker opens, and why
        self.told = False  # that it waits for a node
        self.full = -1  # since this number of changes there is no room for one more worker

    @property
    def workers(self) -> list[Worker]:
        return [*self.idle, *self.busy]

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.again or self.later or self.busy)

    def able(self, node: Node) -> bool:
        return node.name not in self.barred and node.gpus >= self.spec.needs.gpus

    def close(self, patience_s: float = 0.0) -> None:
        for worker in self.workers:
            worker.close(patience_s)
        self.idle, self.busy = [], {}


def run_chain(
    specs: list[StageSpec],
    shards: list[str],
    crew: Crew,
    attempts: int = 3,
    on_event: Callable[[dict], None] = lambda event: None,
    payload: Callable[[str], Any] = lambda shard: None,
) -> Iterator[dict]:
    """A row per shard as it leaves the chain: {shard, <stage>: status…, failed?, error?, fatal?}. `on_event`
    gets its begin and end at each stage; `payload`: what the first stage is given with a shard."""
    chain = Chain(specs, crew, attempts, on_event, payload)
    chain.stages[0].waiting.extend({"shard": shard} for shard in shards)
    try:
        yield from chain.rows()
    finally:
        for stage in chain.stages:
            stage.close()


class Chain:
    def __init__(
        self, specs: list[StageSpec], crew: Crew, attempts: int, on_event: Callable, payload: Callable
    ):
        self.first, self.stages = specs[0].name, [Stage(spec) for spec in specs]
        self.crew, self.attempts, self.on_event, self.payload = crew, attempts, on_event, payload
        self.nodes: dict[str, Node] = {}
        self.hosts: dict[str, str] = {}  # of nodes that are gone too
        self.changes = 0  # of the nodes, and workers that ended
        self._order = itertools.count()

    def rows(self) -> Iterator[dict]:
        while self.stages:
            if not self.stages[0].has_work:
                self.stages.pop(0).close(CLOSE_S)  # its CPUs go to the later ones
                self.nodes = {}
                continue
            self._look()
            for stage in self.stages:
                self._due(stage)
                self._man(stage)
                self._give(stage)
                yield from self._hopeless(stage)
            busy = [worker for stage in self.stages for worker in stage.busy]
            for worker, out in self.crew.ended(busy, self._patience()):
                place = next(i for i, stage in enumerate(self.stages) if worker in stage.busy)
                row = self._end(self.stages[place], worker, out)
                if row and ("failed" in row or place + 1 == len(self.stages)):
                    yield row
                elif row:
                    self.stages[place + 1].waiting.append(row)

    def _look(self) -> None:
        """Share the nodes out anew when some came or went."""
        nodes = {node.name: node for node in self.crew.nodes()}
        if nodes == self.nodes or not nodes:
            return
        self.changes += 1
        self.hosts |= {name: node.host or name for name, node in nodes.items()}
        self.nodes, specs = nodes, [stage.spec for stage in self.stages]
        session = whole(list(nodes.values()))
        gpus = max(session.gpus, sum(spec.needs.gpus for spec in specs))  # those that may join
        sizes = size_pools(specs, session.cpus, gpus, session.node_cpus)
        counts = shares(specs, session)
        for stage, size, count in zip(self.stages, sizes, counts, strict=True):
            stage.cpus, stage.most = size.cpus, count

    def _due(self, stage: Stage) -> None:
        while stage.later and stage.later[0][0] <= time.monotonic():
            stage.again.append(heapq.heappop(stage.later)[2])

    def _man(self, stage: Stage) -> None:
        """Workers for what waits, up to the stage's share; all stages load their models at once."""
        waiting = len(stage.waiting) + len(stage.again)
        while len(stage.workers) < (stage.most if waiting > len(stage.idle) else min(1, stage.most)):
            if stage.full == self.changes or (node := self._place(stage)) is None:
                stage.full = self.changes
                break
            stage.told = False
            stage.idle.append(self.crew.start(stage.spec, stage.cpus, node))
        if waiting and not stage.workers and not stage.barred and not stage.told:
            stage.told = True
            self.on_event({"event": "waits", "stage": stage.spec.name, "gpus": stage.spec.needs.gpus})
        self._move(stage)

    def _move(self, stage: Stage) -> None:
        """A worker on another node for a shard that failed wherever the stage has one."""
        for away in [row["away"] for row in stage.again] if stage.workers else ():
            if any(worker.node not in away for worker in stage.workers):
                continue
            if (node := self._place(stage, away)) is not None:
                if len(stage.workers) >= stage.most and stage.idle:
                    stage.idle.pop().close()
                stage.idle.append(self.crew.start(stage.spec, stage.cpus, node))

    def _place(self, stage: Stage, away: Iterable[str] = ()) -> Node | None:
        """The node with most room. A stage's first worker takes the best there is: on a small machine stages
        share CPUs. Of a node with GPUs the others leave the CPUs that the stages with GPUs will need."""
        best, room = None, None
        needs = stage.spec.needs
        for node in filter(stage.able, self.nodes.values()):
            if node.name in away:
                continue
            cpus, gpus = node.cpus, node.gpus
            for other in self.stages:
                own = sum(worker.node == node.name for worker in other.workers)
                cpus, gpus = cpus - own * other.cpus, gpus - own * other.spec.needs.gpus
            for other in self.stages if not needs.gpus else ():
                if other.spec.needs.gpus and node.name not in other.barred:
                    cpus -= int(gpus / other.spec.needs.gpus + 1e-6) * other.cpus
            fits = cpus >= stage.cpus - 1e-6 and gpus >= needs.gpus - 1e-6
            if (fits or not stage.workers) and (room is None or (fits, gpus, cpus) > room):
                best, room = node, (fits, gpus if needs.gpus else 0, cpus)
        return best

    def _give(self, stage: Stage) -> None:
        """Work for those that are idle: what failed before first."""
        for row in [stage.again.popleft() for _ in range(len(stage.again))]:
            if not stage.idle or not self._begin(stage, row, self._chosen(stage, row)):
                stage.again.append(row)
        while stage.idle and stage.waiting:
            row = stage.waiting.popleft()
            if not self._begin(stage, row, stage.idle[0]):
                stage.waiting.appendleft(row)

    def _begin(self, stage: Stage, row: dict, worker: Worker | None) -> bool:
        """False when there is no such worker, or it died while it was idle."""
        if worker is None:
            return False
        stage.idle.remove(worker)
        shard = row["shard"]
        if not worker.begin(shard, self.payload(shard) if stage.spec.name == self.first else None):
            self._close(worker)
            return False
        stage.busy[worker] = row
        stage.tried[shard] += 1
        self._tell("begin", stage, shard, host=self.hosts[worker.node], started=time.time())
        return True

    def _chosen(self, stage: Stage, row: dict) -> Worker | None:
        """An idle worker of a node on which the shard has not failed; where the stage has none, any."""
        away = row["away"]
        if elsewhere := [worker for worker in stage.idle if worker.node not in away]:
            return elsewhere[0]
        wait = any(worker.node not in away for worker in stage.busy)
        return stage.idle[0] if stage.idle and not wait else None

    def _patience(self) -> float:
        due = min((stage.later[0][0] for stage in self.stages if stage.later), default=float("inf"))
        return max(0.0, min(LOOK_S, due - time.monotonic()))

    def _close(self, worker: Worker) -> None:
        worker.close()
        self.changes += 1

    def _end(self, stage: Stage, worker: Worker, out: dict | None) -> dict | None:
        """The row of a shard that a worker has ended with; None when it is to be tried again."""
        row = stage.busy.pop(worker)
        shard = row["shard"]
        if out is None:
            self._close(worker)
            if self.crew.lost(worker):
                return self._again(stage, row, worker, "its node was lost")
            stage.died[shard] += 1
            if stage.died[shard] < self.attempts:
                return self._again(stage, row, worker, "its worker died")
            out = {"error": f"the worker died {self.attempts} times on this shard (out of memory?)"}
            out |= {
                "shard": shard,
                "stage": stage.spec.name,
                "status": "failed",
                "host": self.hosts[worker.node],
            }
        elif "unopened" in out:
            self._close(worker)
            stage.barred[worker.node] = out["unopened"]
            if any(map(stage.able, self.nodes.values())):
                host = self.hosts[worker.node]
                self._tell("left-out", stage, shard, node=host, error=out["unopened"])
                return self._again(stage, row, worker, "its worker could not be opened")
            out |= {"error": out.pop("unopened"), "fatal": True}
        else:
            stage.idle.append(worker)
            if out.get("transient") and stage.failed[shard] < self.attempts:
                pause = PAUSE_S * 2 ** stage.failed[shard] * (1 + random.random())
                stage.failed[shard] += 1
                return self._again(stage, row, worker, out["error"], pause)
        return self._over(stage, row, out)

    def _over(self, stage: Stage, row: dict, out: dict) -> dict:
        """The row of a shard after a stage that is done with it."""
        self.on_event({"event": "end", **out, "attempts": stage.tried.pop(row["shard"], 0)})
        return passed_on({k: v for k, v in row.items() if k != "away"}, stage.spec.name, out)

    def _hopeless(self, stage: Stage) -> Iterator[dict]:
        """Rows of a stage that opens on no node: every shard would fail alike."""
        if stage.barred and not stage.busy and not any(map(stage.able, self.nodes.values())):
            why = next(iter(stage.barred.values()))
            while stage.waiting or stage.again:
                row = (stage.waiting or stage.again).popleft()
                out = {"shard": row["shard"], "stage": stage.spec.name, "status": "failed", "fatal": True}
                yield self._over(stage, row, out | {"error": why})

    def _again(self, stage: Stage, row: dict, worker: Worker, why: str, pause_s: float = 0.0) -> None:
        row = row | {"away": {*row.get("away", ()), worker.node}}
        heapq.heappush(stage.later, (time.monotonic() + pause_s, next(self._order), row))
        host = self.hosts[worker.node]
        self._tell("again", stage, row["shard"], host=host, error=why, pause_s=round(pause_s, 1))

    def _tell(self, event: str, stage: Stage, shard: str, **facts: Any) -> None:
        self.on_event({"event": event, "stage": stage.spec.name, "shard": shard} | facts)


def whole(nodes: list[Node]) -> Session:
    """What nodes have together."""
    cpus, gpus, memory = (
        sum(of) for of in zip(*((n.cpus, n.gpus, n.memory_bytes) for n in nodes), strict=True)
    )
    return Session(cpus, gpus, max(node.cpus for node in nodes), memory)
