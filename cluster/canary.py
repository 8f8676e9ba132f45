"""Before a long stream begins, a shard goes through all stages on one node of each kind: what every shard
would meet there is known after minutes."""

from collections.abc import Callable
from itertools import islice, takewhile
from typing import Any

from cluster.chain import run_chain
from cluster.crew import Crew, Node, Worker
from cluster.pools import StageSpec

MANY = 100  # shards, of which fewer are no long stream
TRIES = 2  # shards that fail on a kind of node before it is the kind's fault


class Only:
    """One node at a time of a crew, of some; LookupError when none is left."""

    def __init__(self, crew: Crew, names: set[str]):
        self.crew, self.names = crew, set(names)
        self.start, self.ended, self.lost = crew.start, crew.ended, crew.lost

    def nodes(self) -> list[Node]:
        found = [node for node in self.crew.nodes() if node.name in self.names]
        if not found:
            raise LookupError("none of its nodes is there and has room")
        return found[:1]

    def crowded(self, busy: list[Worker]) -> list[Worker]:
        """Another node comes in place of one that others hold."""
        found = self.crew.crowded(busy)
        self.names -= {worker.node for worker in found}
        return found


def tried(
    specs: list[StageSpec],
    shards: list[str],
    crew: Crew,
    kinds: dict[str, set[str]],
    on_event: Callable[[dict], None],
    payload: Callable[[str], Any],
) -> dict[str, dict]:
    """Kinds of nodes on which shards fail, and the row of one; `kinds`: names of their nodes."""
    bad, fresh = {}, iter(shards)
    for kind, names in kinds.items():
        for shard in islice(fresh, TRIES):
            row, event = _through(specs, shard, Only(crew, names), payload)
            on_event({"event": "canary", "kind": kind, "shard": shard} | event)
            if "failed" not in row:
                bad.pop(kind, None)
                break
            bad[kind] = row
    return bad


def _through(
    specs: list[StageSpec], shard: str, crew: Only, payload: Callable[[str], Any]
) -> tuple[dict, dict]:
    """The row of a shard after the stages that a node has the GPUs for, up to the first that it has not; and
    what is told of it."""
    stages: dict[str, dict] = {}

    def note(event: dict) -> None:
        if event["event"] == "end":
            stages[event["stage"]] = {name: event.get(name) for name in ("status", "wall_s", "samples")}

    try:
        [node] = crew.nodes()
        able = list(takewhile(lambda spec: spec.needs.gpus <= node.gpus, specs))
        rows = list(run_chain(able, [shard], crew, on_event=note, payload=payload)) if able else [{}]
    except LookupError as error:  # its nodes may come again
        return {}, {"node": "", "stages": stages, "error": str(error)}
    return rows[0], {"node": node.host or node.name, "stages": stages, "error": rows[0].get("error")}
