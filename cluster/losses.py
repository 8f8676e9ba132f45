"""Which shards take their nodes down: a preemption is no fault of what ran there, unless it always is."""

from collections import Counter

from cluster.crew import Worker
from cluster.stage import Stage

IN_A_ROW = 5  # losses of nodes, each of which held the shard
AT_ALL = 25  # losses of nodes with the shard, whatever else was lost in between


class Losses:
    def __init__(self):
        self._in_a_row, self._all = Counter(), Counter()  # of each shard
        self._counted: set[Worker] = set()  # on nodes whose loss another worker has told

    def add(self, worker: Worker, shard: str, stages: list[Stage]) -> str:
        """Count the loss of a worker's node, once for all that were busy there. Why its shard is given up;
        empty: it is to be tried again."""
        if worker not in self._counted:
            beside = {w: row["shard"] for s in stages for w, row in s.busy.items() if w.node == worker.node}
            held = {shard, *beside.values()}
            self._in_a_row = Counter({name: self._in_a_row[name] + 1 for name in held})
            self._all.update(held)
            self._counted |= beside.keys()
        self._counted.discard(worker)
        if self._in_a_row[shard] >= IN_A_ROW:
            return f"the last {self._in_a_row[shard]} nodes that were lost were all working on this shard"
        if self._all[shard] >= AT_ALL:
            return f"its node was lost {self._all[shard]} times"
        return ""
