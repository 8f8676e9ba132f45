"""Which stage has workers on which node, as nodes come and go."""

import time
from collections.abc import Callable, Iterable

from cluster.crew import Crew, Node, Worker, whole
from cluster.pools import shares, size_pools
from cluster.stage import Stage

CROWDED_S = 600.0  # before a node that others hold is tried again


class Placing:
    def __init__(self, stages: list[Stage], crew: Crew, on_event: Callable[[dict], None]):
        self.stages, self.crew, self.on_event = stages, crew, on_event  # the chain's own list
        self.nodes: dict[str, Node] = {}
        self.hosts: dict[str, str] = {}  # of nodes that are gone too
        self.changes = 0  # of the nodes, and workers that ended

    def look(self) -> None:
        """Share the nodes out anew when some came or went."""
        for stage in self.stages:
            for name in [name for name in stage.shunned() if stage.crowded[name] <= time.monotonic()]:
                stage.crowded[name] = 0.0
                self.changes += 1
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

    def able(self, stage: Stage) -> bool:
        """Whether any node may open a worker of it."""
        return any(map(stage.able, self.nodes.values()))

    def man(self, stage: Stage) -> None:
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
        best, room, shunned = None, None, stage.shunned()
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
            fits = fits and node.name not in shunned
            here = (fits, gpus if needs.gpus else 0, cpus)
            if (fits or not stage.workers) and (room is None or here > room):
                best, room = node, here
        return best

    def close(self, worker: Worker) -> None:
        worker.close()
        self.changes += 1

    def leave(self, stage: Stage, worker: Worker) -> bool:
        """Close a worker that has no room on its node, if the stage has another place: the node is tried
        again later, or when all are held."""
        held = {worker.node, *stage.shunned()}
        if all(other.node in held for other in stage.workers) and self._place(stage, {worker.node}) is None:
            if not (others := held - {worker.node}):
                return False
            stage.crowded[min(others, key=stage.crowded.get)] = 0.0
        stage.crowded[worker.node] = time.monotonic() + CROWDED_S
        self.close(worker)
        return True
