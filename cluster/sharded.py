"""A chain of stages over shard names as one stream: while one shard is decoded, another is labelled."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import ray
import ray.data

from cluster.ledger import ledger_here, watching
from cluster.session import Session, debugging
from stages.label.base import Needs

SLACK = 0.1  # share of the CPUs left for Ray Data's own tasks


class StageSpec(NamedTuple):
    """`make` opens the worker in its actor; the worker maps a shard name to a row."""

    name: str
    make: Callable[[], Callable[[str], dict]]
    needs: Needs = Needs()
    max_workers: int | None = None
    cpu_s: float = 1.0  # for a second of audio, relative to the other stages: divides a small machine


class PoolSize(NamedTuple):
    cpus: float
    min_workers: int
    max_workers: int


def size_pools(
    specs: list[StageSpec], cpus: float, gpus: float, node_cpus: float | None = None
) -> list[PoolSize]:
    """One actor of each and one more task always fit. On a smaller cluster reservations shrink to fractions,
    with room for a busy stage's pool to grow, and for one actor of each on one node of `node_cpus`, should
    the others die. ValueError naming a stage that needs more GPUs than there are."""
    gpu_needs, whole = sum(spec.needs.gpus for spec in specs), sum(spec.needs.cpus for spec in specs)
    if gpu_needs > gpus:
        wanting = next(spec for spec in specs if spec.needs.gpus)
        raise ValueError(
            f"stage {wanting.name} asks for {wanting.needs.gpus:g} GPU, the cluster has {gpus:g}: "
            f"lower run.pools.{wanting.name}.gpus or add a GPU node"
        )
    usable, scale = cpus * (1 - SLACK), 1.0
    if usable < whole + 1:
        # one actor of each, and as many more as there are CPUs
        scale = min(usable / (whole + math.ceil(cpus)), (node_cpus or cpus) * (1 - SLACK) / whole)
    pools, work = [], sum(spec.cpu_s for spec in specs)
    for spec in specs:
        needs = spec.needs
        reserved = math.floor(needs.cpus * scale * 1000) / 1000 if scale < 1 else needs.cpus
        room = 1 + (usable - whole * scale) / max(reserved, 1e-9)
        if needs.gpus:
            room = min(room, 1 + (gpus - gpu_needs) / needs.gpus)
        most = int(room + 1e-6)
        if scale < 1:  # a process beyond a stage's share of the CPUs gains nothing
            most = min(most, math.ceil(cpus * spec.cpu_s / work / needs.cpus))
        most = max(1, most)
        pools.append(PoolSize(reserved, 1, min(most, spec.max_workers or most)))
    return pools


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

        shard, name, host = row["shard"], self.spec.name, platform.node()
        tried = ray.get(self.ledger.begin.remote(name, shard, host))
        out = {"shard": shard, "stage": name, "status": "failed"}
        if tried > self.attempts:
            error = f"the worker died {self.attempts} times on this shard (out of memory?)"
            out |= {"host": host, "error": error}
        else:
            try:
                out = self.opening.result()(shard)
            # opening failed: every shard would fail alike
            except (ValueError, OSError, RuntimeError, ImportError) as error:
                out |= {"error": str(error), "fatal": True}
        out["attempts"] = tried
        ray.get(self.ledger.end.remote(out))  # now: the driver does not wait for it after the last row
        row[name] = out["status"]
        if out["status"] == "failed":
            fatal = bool(out.get("fatal") or out.get("disk_full"))
            row |= {"failed": name, "error": out["error"], "fatal": fatal}
        return row


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
