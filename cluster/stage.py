"""A stage of a chain: the shards that wait for it, and its workers."""

from collections import Counter, deque

from cluster.crew import Node, Worker
from cluster.pools import StageSpec

NEAR = 32  # rows that wait longest, of which a worker may choose, and times that the first may be passed over


class Stage:
    def __init__(self, spec: StageSpec):
        self.spec, self.cpus, self.most = spec, spec.needs.cpus, 1
        self.waiting: deque[dict] = deque()  # rows of the chain
        self.again: deque[dict] = deque()  # those that failed before, and `away`, where
        self.later: list[tuple[float, int, dict]] = []  # a heap of such, by the time from which on they wait
        self.idle: list[Worker] = []
        self.busy: dict[Worker, dict] = {}
        self.tried, self.died, self.failed = Counter(), Counter(), Counter()  # of each shard
        self.barred: dict[str, str] = {}  # nodes on which no worker opens, and why
        self.crowded: dict[str, float] = {}  # nodes that others held, and until when they are left alone
        self._passed = 0  # since the row that waits longest was taken
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

    def take(self, node: str, near: bool) -> dict | None:
        """A waiting row for a worker on this node: the one that waits longest or, if `near`, one whose stage
        before ran there, which has its files; none where there is no such row."""
        if not near or self._passed >= NEAR or self.waiting[0].get("node") == node:
            self._passed = 0
            return self.waiting.popleft()
        for at in range(1, min(NEAR, len(self.waiting))):
            if (row := self.waiting[at]).get("node") == node:
                self._passed += 1
                del self.waiting[at]
                return row
        return None

    def shunned(self) -> set[str]:
        return {name for name, until in self.crowded.items() if until}

    def close(self, patience_s: float = 0.0) -> None:
        for worker in self.workers:
            worker.close(patience_s)
        self.idle, self.busy = [], {}
