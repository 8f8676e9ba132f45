"""The same work on many shards: in threads of this process, or, where RAY_ADDRESS names a cluster, on its
nodes."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.pools import StageSpec
from cluster.runner import runner
from stages.label.base import Needs
from stages.shards.storage import Storage

THREADS = 4


@dataclass(frozen=True)
class Each:
    """A worker of a chain of one stage."""

    name: str
    work: Callable[[str, Any], Any]

    def __call__(self, shard: str, payload: Any) -> dict:
        try:
            made = self.work(shard, payload)
        except OSError as error:  # of this shard alone
            made = error
        return {"shard": shard, "stage": self.name, "status": "finished", "made": made}


def spread(
    name: str,
    work: Callable[[str, Any], Any],
    shards: Sequence[str],
    seen: Storage,
    payload: Callable[[str], Any] = str,
) -> Iterator[tuple[str, Any]]:
    """(shard, what `work(shard, payload(shard))` gave, or its OSError), as they are done; other exceptions
    are raised. `seen`: what each node must see, else ValueError."""
    if not os.environ.get("RAY_ADDRESS"):
        each = Each(name, work)
        with ThreadPoolExecutor(THREADS) as pool:
            for row in pool.map(lambda shard: each(shard, payload(shard)), shards):
                yield row["shard"], row["made"]
        return
    ray = runner(plain=False)
    ray.preflight(0)
    with ray.session() as session:
        session = session._replace(check=ray.check_nodes(seen, []))
        spec = StageSpec(name, partial(Each, name, work), Needs(1, 0, 1))
        for row in ray.run_chain([spec], list(shards), session, payload=payload):
            yield row["shard"], row["made"] if "made" in row else OSError(row["error"])
