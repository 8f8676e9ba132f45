"""How a machine or a cluster is shared out among the stages of a chain, and what becomes of one shard at one
stage: the same for Ray and for plain processes."""

import math
import os
import platform
from collections.abc import Callable
from typing import NamedTuple

from stages.label.base import Needs

SLACK = 0.1  # share of the CPUs left for Ray Data's own tasks


class Session(NamedTuple):
    """What there is to share out."""

    cpus: float
    gpus: float
    node_cpus: float  # of the largest node
    memory_bytes: float


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


def outcome(stage: str, shard: str, opened: Callable[[], Callable], tried: int, attempts: int) -> dict:
    """The row of a shard at a stage, at its `tried`-th attempt; `opened()` gives the worker, or raises what
    went wrong when it was opened."""
    row = {"shard": shard, "stage": stage, "status": "failed"}
    if tried > attempts:
        error = f"the worker died {attempts} times on this shard (out of memory?)"
        row |= {"host": platform.node(), "error": error}
    else:
        try:
            row = opened()(shard)
        # opening failed: every shard would fail alike
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            row |= {"error": str(error), "fatal": True}
    return row | {"attempts": tried}


def passed_on(row: dict, stage: str, out: dict) -> dict:
    """The chain's row of a shard, after a stage whose own row is `out`."""
    row = row | {stage: out["status"]}
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
