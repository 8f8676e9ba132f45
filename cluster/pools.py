"""How a machine or a cluster is shared out among the stages of a chain, and what becomes of one shard at one
stage: the same for Ray and for plain processes."""

import math
import os
import platform
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from stages.label.base import Needs
from stages.label.machine import Kinds, another

SLACK = 0.1  # share of the CPUs left for the driver and for what else a node does


class Session(NamedTuple):
    """What there is to share out."""

    cpus: float
    gpus: float
    node_cpus: float  # of the largest node
    memory_bytes: float
    grows: bool = False  # nodes may join
    check: Callable[[dict], str] = lambda node: ""  # why one that joined cannot be used


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


def shares(specs: list[StageSpec], session: Session) -> list[int]:
    """Workers of each stage: one, and while CPUs, GPUs and memory are left, one more where each has most to
    do. None of a stage that needs a GPU where there is none: a node that joins later may have one."""
    wanted = sum(spec.needs.gpus for spec in specs)
    pools = size_pools(specs, session.cpus, max(session.gpus, wanted), session.node_cpus)
    needs = [
        (pool.cpus, spec.needs.gpus, spec.needs.memory_gb) for pool, spec in zip(pools, specs, strict=True)
    ]
    left = [session.cpus, session.gpus, session.memory_bytes / 2**30]
    counts = [0] * len(specs)

    def able(i: int) -> bool:
        if needs[i][1] > session.gpus:
            return False
        fits = all(need <= have + 1e-6 for need, have in zip(needs[i], left, strict=True))
        return not counts[i] or fits and counts[i] < pools[i].max_workers

    while chosen := [i for i in range(len(specs)) if able(i)]:
        i = max(chosen, key=lambda i: (not counts[i], specs[i].cpu_s / max(1, counts[i])))
        counts[i] += 1
        left = [have - need for need, have in zip(needs[i], left, strict=True)]
    return counts


def check_fits(specs: list[StageSpec], session: Session) -> None:
    """ValueError naming a stage that needs more GPUs than there are or may come."""
    if not session.grows:
        size_pools(specs, session.cpus, session.gpus, session.node_cpus)


def check_machine(where: str, seen: dict[str, str], kinds: Kinds | None) -> None:
    """ValueError for a machine of another kind; None: they may be mixed."""
    if kinds is not None and (problem := another(seen, kinds)):
        raise ValueError(
            f"{where}: {problem}; the same audio may get other labels there: leave it out, or allow it with "
            f"run.mixed_devices=true"
        )


def outcome(stage: str, shard: str, payload: Any, opened: Callable[[], Callable]) -> dict:
    """What a worker answers about a shard; `opened()` gives the worker, or raises what went wrong when it was
    opened, which every shard would meet here: `unopened`."""
    try:
        work = opened()
    except Exception as error:
        row = {"shard": shard, "stage": stage, "status": "failed", "unopened": str(error) or repr(error)}
        return row | {"traceback": traceback.format_exc(), "host": platform.node()}
    return work(shard) if payload is None else work(shard, payload)


def passed_on(row: dict, stage: str, out: dict) -> dict:
    """The chain's row of a shard, after a stage whose own row is `out`: with the recordings that its stages
    rejected so far, and what a stage `made` for the driver."""
    row = row | {stage: out["status"]} | ({"made": out["made"]} if "made" in out else {})
    if "rejected" in out:
        row.setdefault("recordings", out["kept"] + out["rejected"])
        row["rejected"] = row.get("rejected", 0) + out["rejected"]
    if out["status"] == "failed":
        fatal = bool(out.get("fatal") or out.get("disk_full"))
        row |= {"failed": stage, "error": out["error"], "fatal": fatal}
    return row


def debugging() -> bool:
    """Whether `overtone --debug` was given."""
    return bool(os.environ.get("OVERTONE_DEBUG"))


def available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_gpus(wanted: float) -> None:
    """ValueError when a GPU is asked for where torch sees none."""
    if wanted:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "run.pools asks for a GPU, this machine has none that torch can use: set run.pools.*.gpus=0, "
                "or name a cluster with GPUs by RAY_ADDRESS"
            )
