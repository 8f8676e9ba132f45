"""What a chain asks of those who run its workers: Ray (`sharded.py`) or plain processes (`plain.py`)."""

from typing import Any, NamedTuple, Protocol

from cluster.pools import Session, StageSpec

LOOK_S = 5.0  # between looks for nodes that came or went


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

    def crowded(self, busy: list[Worker]) -> list[Worker]:
        """Those that wait for long for what others hold of their nodes."""


def whole(nodes: list[Node]) -> Session:
    """What nodes have together."""
    cpus, gpus, memory = (
        sum(of) for of in zip(*((n.cpus, n.gpus, n.memory_bytes) for n in nodes), strict=True)
    )
    return Session(cpus, gpus, max(node.cpus for node in nodes), memory)
