"""A chain of stages on a Ray cluster: a worker is an actor, pinned to a node by `chain.py`."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import canary, chain
from cluster.crew import LOOK_S, Node
from cluster.ledger import ledger_here, watching
from cluster.metrics import Metrics
from cluster.pools import Session, StageSpec, outcome
from cluster.probing import probe_all as probe_all
from cluster.session import PROBE_S, alive
from cluster.session import check_nodes as check_nodes
from cluster.session import preflight as preflight
from cluster.session import session as session
from stages.label.machine import machine

NAME = "Ray"
GONE = (
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.ActorUnschedulableError,  # its node went before it came
)
UNMADE = "error raised in its creation task"
READY_S = 30.0  # within which an actor comes where there is room
DIED = "worker process has died"  # Ray of an actor whose node lives; of others it only says the node is gone


@ray.remote(max_restarts=0)
class Actor:
    """Opens a worker of a stage, and runs shards."""

    def __init__(self, spec: StageSpec):
        # In a thread, so that all load their models at once; the first shard reports an error of it.
        self.name, self.opening = spec.name, ThreadPoolExecutor(1).submit(spec.make)

    def run(self, shard: str, payload: Any) -> dict:
        return outcome(self.name, shard, payload, self.opening.result)

    def end(self) -> None:
        ray.actor.exit_actor()  # which runs what is to be done at exit; `ray.kill` does not


@ray.remote(num_cpus=0, max_retries=0)
def _loads(spec: StageSpec) -> None:
    """What an actor does before it is there."""


@ray.remote(num_cpus=0, max_retries=2)
def _machine() -> dict[str, str]:
    return machine()


def _kind(node: str) -> str:
    """Of machine, in words; empty for a node that does not answer."""
    try:
        seen = ray.get(_machine.options(scheduling_strategy=_at(node)).remote(), timeout=PROBE_S)
    except ray.exceptions.RayError:
        return ""
    return ", ".join(seen.values())


def _at(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _is_there(answer: Any) -> bool:
    return bool(ray.wait([answer], timeout=0)[0])


class Worker:
    def __init__(self, actor: Any, spec: StageSpec, node: str):
        self.actor, self.spec, self.node = actor, spec, node
        self.shard, self.answer, self.error = "", None, ""
        self._begun, self._ready = time.monotonic(), actor.__ray_ready__.remote()

    def begin(self, shard: str, payload: Any) -> bool:
        self.shard = shard
        self.answer = self.actor.run.remote(shard, payload)
        return True

    def late(self) -> bool:
        """Whether it is not there yet, after `READY_S`."""
        if self._ready is None or time.monotonic() - self._begun < READY_S:
            return False
        if _is_there(self._ready):
            self._ready = None
        return self._ready is not None

    def unopened(self, error: str) -> dict:
        """As `pools.outcome`, of an actor that could not be made: a module is missing on its node, say."""
        last = error.strip().splitlines()[-1].strip()
        return {
            "shard": self.shard,
            "stage": self.spec.name,
            "status": "failed",
            "unopened": last,
            "traceback": error,
        }

    def close(self, patience_s: float = 0.0) -> None:
        with suppress(ray.exceptions.RayError):
            if patience_s:
                self.actor.end.remote()
            else:
                ray.kill(self.actor)


class Crew:
    """Actors, as `chain.Crew`."""

    def __init__(self, session: Session, specs: list[StageSpec], say: Callable[[dict], None]):
        # Reserved only where there is plenty: Ray counts memory, but does not measure it.
        self._plenty = session.memory_bytes >= 2 * sum(spec.needs.memory_gb for spec in specs) * 2**30
        self._check, self._seen = session.check, {node["NodeID"]: "" for node in alive()}  # why not
        self._say = say
        self._nodes, self._looked, self._asked = [], float("-inf"), float("-inf")
        self._probes: dict[str, Any] = {}  # of nodes
        self._bad: dict[str, str] = {}  # kinds of nodes that are left out, and why

    def nodes(self) -> list[Node]:
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked, found = time.monotonic(), []
            for node in alive():
                name, has = node["NodeID"], node["Resources"]
                if name not in self._seen:
                    self._seen[name] = problem = self._check(node) or self._of_kind(name)
                    event = "node-left-out" if problem else "node-joined"
                    self._say({"event": event, "node": node["NodeManagerAddress"], "error": problem})
                if not self._seen[name]:
                    memory, host = has.get("memory", 0.0), node["NodeManagerHostname"]
                    found.append(Node(name, has["CPU"], has.get("GPU", 0.0), memory, host))
            self._nodes = found
        return self._nodes

    def kinds(self) -> dict[str, set[str]]:
        """Names of the nodes of each kind of machine."""
        found: dict[str, set[str]] = {}
        for node in self.nodes():
            found.setdefault(_kind(node.name), set()).add(node.name)
        return found

    def leave_out(self, kind: str, names: set[str], why: str) -> None:
        """These nodes, and those of their kind that join later."""
        self._bad[kind] = why
        self._seen |= dict.fromkeys(names, why)
        self._looked = float("-inf")
        self._say({"event": "node-left-out", "node": f"of kind {kind} ({len(names)} now)", "error": why})

    def _of_kind(self, name: str) -> str:
        return self._bad.get(_kind(name), "") if self._bad else ""

    def start(self, spec: StageSpec, cpus: float, node: Node) -> Worker:
        memory = spec.needs.memory_gb * 2**30 if self._plenty else None
        options = {"num_cpus": cpus, "num_gpus": spec.needs.gpus, "memory": memory}
        actor = Actor.options(scheduling_strategy=_at(node.name), **options).remote(spec)
        return Worker(actor, spec, node.name)

    def crowded(self, busy: list[Worker]) -> list[Worker]:
        """Actors that Ray cannot place: one that only starts slowly is there before a task without CPUs that
        loads the same modules on the same node, and is sent when the actor is late."""
        late = [worker for worker in busy if worker.late()]
        if not late or time.monotonic() - self._asked < LOOK_S:
            return []
        self._asked = time.monotonic()
        for worker in late:
            if worker.node not in self._probes:
                self._probes[worker.node] = _loads.options(scheduling_strategy=_at(worker.node)).remote(
                    worker.spec
                )
        done = {node for node, probe in self._probes.items() if _is_there(probe)}
        self._probes = {node: probe for node, probe in self._probes.items() if node not in done}
        return [worker for worker in late if worker.node in done and worker.late()]

    def ended(self, busy: list[Worker], timeout_s: float) -> list[tuple[Worker, dict | None]]:
        if not busy:
            time.sleep(timeout_s)
            return []
        by_answer = {worker.answer: worker for worker in busy}
        try:
            ready, rest = ray.wait(list(by_answer), timeout=timeout_s)
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0] if ready and rest else []
            return [(by_answer[answer], self._answered(by_answer[answer])) for answer in ready]
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # a defect of ours, with its traceback
        except ray.exceptions.RayError as error:
            raise OSError(
                f"the Ray cluster failed ({str(error).splitlines()[0]}); finished shards are kept, run again"
            ) from None

    def _answered(self, worker: Worker) -> dict | None:
        try:
            return ray.get(worker.answer)
        except ray.exceptions.RuntimeEnvSetupError as error:
            return worker.unopened(str(error))
        except GONE as error:
            worker.error = str(error)
            return worker.unopened(worker.error) if UNMADE in worker.error else None

    def lost(self, worker: Worker) -> bool:
        self._looked = float("-inf")
        return DIED not in worker.error


def run_chain(
    specs: list[StageSpec],
    shards: list[str],
    session: Session,
    attempts: int = 3,
    on_event: Callable[[dict], None] = lambda event: None,
    payload: Callable[[str], Any] = lambda shard: None,
) -> Iterator[dict]:
    """As `chain.run_chain`, on the nodes of the cluster that are there and those that join."""
    metrics = Metrics(specs, len(shards))

    def tell(event: dict) -> None:
        metrics.add(event)
        on_event(event)

    crew = Crew(session, specs, tell)
    if session.grows and len(shards) > canary.MANY and len(crew.nodes()) > 1:
        kinds = crew.kinds()
        bad = canary.tried(specs, shards, crew, kinds, tell, payload)
        if len(bad) == len(kinds):
            yield next(iter(bad.values())) | {"fatal": True}
            return
        for kind, row in bad.items():
            crew.leave_out(kind, kinds[kind], f"{row['failed']}: {row['error']}")
    yield from chain.run_chain(specs, shards, crew, attempts, tell, payload)


def report(ledger: Any, event: dict) -> None:
    ray.get(ledger.add.remote(event))  # the last one must arrive before the function's own value


def run_one_reporting(
    work: Callable[..., Any], on_event: Callable[[dict], None], *args: Any, cpus: float, gpus: float = 0
) -> Any:
    """Run `work(*args, report)` in a worker, again if its node dies; its exceptions are raised here."""
    ledger = ledger_here()
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(work)
    task = remote.remote(*args, partial(report, ledger))
    if gpus > max(node["Resources"].get("GPU", 0.0) for node in alive()):
        on_event({"waits": f"for a node with {gpus:g} GPU"})
    with watching(ledger, on_event):
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
