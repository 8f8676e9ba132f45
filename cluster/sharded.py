"""A chain of stages over shard names as one stream: while one shard is decoded, another is labelled."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
import ray.data

from cluster.ledger import ledger_here, watching
from cluster.pools import Session, StageSpec, debugging, outcome, passed_on, size_pools
from cluster.session import check_nodes as check_nodes
from cluster.session import preflight as preflight
from cluster.session import session as session

NAME = "Ray"


class Actor:
    """A process of a pool, which opens its worker; rows of failed shards are passed on."""

    def __init__(self, spec: StageSpec, ledger: Any, attempts: int):
        self.spec, self.ledger, self.attempts = spec, ledger, attempts
        # In a thread, so that all pools load their models at once; the first shard reports an error of it.
        self.opening = ThreadPoolExecutor(1).submit(spec.make)

    def __call__(self, batch: dict) -> dict:
        return {"row": [json.dumps(self._one(json.loads(text))) for text in batch["row"]]}

    def _one(self, row: dict) -> dict:
        if row.get("failed"):
            return row
        import platform

        shard, name = row["shard"], self.spec.name
        tried = ray.get(self.ledger.begin.remote(name, shard, platform.node()))
        out = outcome(name, shard, self.opening.result, tried, self.attempts)
        ray.get(self.ledger.end.remote(out))  # now: the driver does not wait for it after the last row
        return passed_on(row, name, out)


def blocks(shards: int) -> int:
    """One per shard, of thousands up to five in one: a block costs the scheduler some 20 ms in each chain,
    and enters the next stage as a whole."""
    return max(1, min(shards, max(2000, math.ceil(shards / 5))))


def run_chain(
    specs: list[StageSpec],
    shards: list[str],
    session: Session,
    attempts: int = 3,
    on_event: Callable[[dict], None] = lambda event: None,
) -> Iterator[dict]:
    """A row per shard as it leaves the chain: {shard, <stage>: status…, failed?, error?, fatal?}. `on_event`
    gets its begin and end at each stage, in another thread."""
    pools = size_pools(specs, session.cpus, session.gpus, session.node_cpus)
    if not debugging():
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its own reports would break our screen
    ledger, items = ledger_here(), [{"row": json.dumps({"shard": s})} for s in shards]
    rows = ray.data.from_items(items, override_num_blocks=blocks(len(shards)))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    # To reserve object-store memory for mere names takes a third of the scheduler's CPU.
    context.op_resource_reservation_enabled = False
    # Reserved only where there is plenty: Ray counts memory, but does not measure it.
    plenty = session.memory_bytes >= 2 * sum(spec.needs.memory_gb for spec in specs) * 2**30
    for spec, pool in zip(specs, pools, strict=True):
        rows = rows.map_batches(
            Actor,
            fn_constructor_args=(spec, ledger, attempts),
            batch_size=None,
            num_cpus=pool.cpus,
            num_gpus=spec.needs.gpus,
            memory=spec.needs.memory_gb * 2**30 if plenty else None,
            compute=ray.data.ActorPoolStrategy(min_size=pool.min_workers, max_size=pool.max_workers),
        )
    with watching(ledger, on_event):
        try:
            for row in rows.iter_rows():
                yield json.loads(row["row"])
        except ray.exceptions.RayTaskError:
            raise  # a defect of ours, with its traceback
        except ray.exceptions.RayError as error:
            raise OSError(
                f"the Ray cluster failed ({str(error).splitlines()[0]}); finished shards are kept, run again"
            ) from None


def report(ledger: Any, event: dict) -> None:
    ray.get(ledger.end.remote(event))  # the last one must arrive before the function's own value


def run_one_reporting(
    work: Callable[..., Any], on_event: Callable[[dict], None], *args: Any, cpus: float, gpus: float = 0
) -> Any:
    """Run `work(*args, report)` in a worker, again if its node dies; its exceptions are raised here."""
    ledger = ledger_here()
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(work)
    task = remote.remote(*args, partial(report, ledger))
    with watching(ledger, lambda event: on_event({k: v for k, v in event.items() if k != "event"})):
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
