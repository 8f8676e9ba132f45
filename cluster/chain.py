"""Shards through a chain of stages: which worker does what, and what becomes of a shard whose worker, node or
store fails. The same for Ray (`sharded.py`) and plain processes (`plain.py`), which give a crew."""

import heapq
import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.crew import LOOK_S, Crew, Worker
from cluster.losses import Losses
from cluster.placing import Placing
from cluster.pools import StageSpec, passed_on
from cluster.stage import Stage

PAUSE_S = 2.0  # before what failed for a while is tried again: doubled each time, and as much again by chance
CLOSE_S = 5.0  # for a worker to end by itself


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
        self.placing, self.losses = Placing(self.stages, crew, on_event), Losses()
        self._order = itertools.count()

    def rows(self) -> Iterator[dict]:
        while self.stages:
            if not self.stages[0].has_work:
                self.stages.pop(0).close(CLOSE_S)  # its CPUs go to the later ones
                self.placing.nodes = {}
                continue
            self.placing.look()
            for stage in self.stages:
                self._due(stage)
                self.placing.man(stage)
                self._give(stage)
                yield from self._hopeless(stage)
            self._leave()
            busy = [worker for stage in self.stages for worker in stage.busy]
            for worker, out in self.crew.ended(busy, self._patience()):
                place = next(i for i, stage in enumerate(self.stages) if worker in stage.busy)
                row = self._end(self.stages[place], worker, out)
                if row and ("failed" in row or place + 1 == len(self.stages)):
                    yield row
                elif row:
                    self.stages[place + 1].waiting.append(row | {"node": worker.node})

    def _due(self, stage: Stage) -> None:
        while stage.later and stage.later[0][0] <= time.monotonic():
            stage.again.append(heapq.heappop(stage.later)[2])

    def _give(self, stage: Stage) -> None:
        """Work for those that are idle: what failed before first, then what was made on their nodes, then
        what waits longest."""
        for row in [stage.again.popleft() for _ in range(len(stage.again))]:
            if not stage.idle or not self._begin(stage, row, self._chosen(stage, row)):
                stage.again.append(row)
        for near in (True, False):
            for worker in list(stage.idle):
                if not stage.waiting:
                    return
                row = stage.take(worker.node, near)
                if row and not self._begin(stage, row, worker):
                    stage.waiting.appendleft(row)

    def _begin(self, stage: Stage, row: dict, worker: Worker | None) -> bool:
        """False when there is no such worker, or it died while it was idle."""
        if worker is None:
            return False
        stage.idle.remove(worker)
        shard = row["shard"]
        if not worker.begin(shard, self.payload(shard) if stage.spec.name == self.first else None):
            self.placing.close(worker)
            return False
        stage.busy[worker] = row
        stage.tried[shard] += 1
        self._tell("begin", stage, shard, host=self.placing.hosts[worker.node], started=time.time())
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

    def _leave(self) -> None:
        """Shards whose workers have no room on their nodes go elsewhere."""
        places = {worker: stage for stage in self.stages for worker in stage.busy}
        for worker in self.crew.crowded(list(places)):
            stage, host = places[worker], self.placing.hosts[worker.node]
            new = worker.node not in stage.crowded
            if self.placing.leave(stage, worker):
                row = stage.busy.pop(worker)
                if new:
                    self._tell("crowded", stage, row["shard"], node=host)
                self._again(stage, row, worker, "others hold its node")

    def _end(self, stage: Stage, worker: Worker, out: dict | None) -> dict | None:
        """The row of a shard that a worker has ended with; None when it is to be tried again."""
        row = stage.busy.pop(worker)
        shard = row["shard"]
        if out is None:
            self.placing.close(worker)
            error, why = self._died(stage, worker, shard)
            if not error:
                return self._again(stage, row, worker, why)
            out = {"shard": shard, "stage": stage.spec.name, "status": "failed", "error": error}
            out |= {"host": self.placing.hosts[worker.node]}
        elif "unopened" in out:
            self.placing.close(worker)
            stage.barred[worker.node] = out["unopened"]
            if self.placing.able(stage):
                host = self.placing.hosts[worker.node]
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

    def _died(self, stage: Stage, worker: Worker, shard: str) -> tuple[str, str]:
        """Why a shard is given up, if it is, or else why it is tried again."""
        if self.crew.lost(worker):
            return self.losses.add(worker, shard, self.stages), "its node was lost"
        stage.died[shard] += 1
        given_up = stage.died[shard] >= self.attempts
        error = f"the worker died {self.attempts} times on this shard (out of memory?)" if given_up else ""
        return error, "its worker died"

    def _over(self, stage: Stage, row: dict, out: dict) -> dict:
        """The row of a shard after a stage that is done with it."""
        self.on_event({"event": "end", **out, "attempts": stage.tried.pop(row["shard"], 0)})
        kept = {k: v for k, v in row.items() if k not in ("away", "node")}
        return passed_on(kept, stage.spec.name, out)

    def _hopeless(self, stage: Stage) -> Iterator[dict]:
        """Rows of a stage that opens on no node: every shard would fail alike."""
        if stage.barred and not stage.busy and not self.placing.able(stage):
            why = next(iter(stage.barred.values()))
            while stage.waiting or stage.again:
                row = (stage.waiting or stage.again).popleft()
                out = {"shard": row["shard"], "stage": stage.spec.name, "status": "failed", "fatal": True}
                yield self._over(stage, row, out | {"error": why})

    def _again(self, stage: Stage, row: dict, worker: Worker, why: str, pause_s: float = 0.0) -> None:
        row = row | {"away": {*row.get("away", ()), worker.node}}
        heapq.heappush(stage.later, (time.monotonic() + pause_s, next(self._order), row))
        host = self.placing.hosts[worker.node]
        self._tell("again", stage, row["shard"], host=host, error=why, pause_s=round(pause_s, 1))

    def _tell(self, event: str, stage: Stage, shard: str, **facts: Any) -> None:
        self.on_event({"event": event, "stage": stage.spec.name, "shard": shard} | facts)
