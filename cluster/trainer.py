"""Training on Ray: one rank a worker, which runs what `torchrun -m stages.pretrain` runs; all are started
again from the last checkpoint when one dies."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.session import alive
from stages.pretrain.config import Config
from stages.pretrain.run.world import free_port

PLACE_S = 60.0  # to wait for room for all ranks in the cluster
LOOK_S = 0.5
BROKEN = ("gloo", "NCCL", "Connection closed", "Connection reset")  # in torch's message when a peer is lost


class Layout(NamedTuple):
    ranks: int
    cpus: float  # of each
    gpus: float

    @property
    def bundles(self) -> list[dict[str, float]]:
        return [{"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})] * self.ranks


@ray.remote(max_restarts=0)
class Rank:
    def where(self) -> tuple[str, int]:
        return ray.util.get_node_ip_address(), free_port()

    def train(self, config: Config, environment: dict[str, str]) -> str:
        os.environ.update(environment)
        from stages.pretrain.loop import train

        return train(config, lambda text: None)  # rank 0 writes its lines to RUN/run.log


def layout(config: Config) -> Layout:
    """One rank per GPU, or per node without any; ValueError when `run.ranks` are too many."""
    nodes = [n["Resources"] for n in alive()]
    cpus, gpus = sum(n["CPU"] for n in nodes), int(sum(n.get("GPU", 0) for n in nodes))
    ranks = config.run.ranks or gpus or len(nodes)
    for have, kind in ((gpus or ranks, "GPUs"), (cpus, "CPUs")):
        if ranks > have:
            raise ValueError(
                f"run.ranks is {ranks}, the cluster has {have:g} {kind}: lower it, or leave it out"
            )
    each = max(1, min(int(cpus // ranks), int(min(n["CPU"] for n in nodes))))
    return Layout(ranks, each, 1.0 if gpus else 0.0)


def train(
    config: Config, look: Callable[[], None], checkpoint: Callable[[], str | None], say: Callable[[str], None]
) -> str:
    """Run all ranks until they are done or stopped, and `look` twice a second; returns the outcome of rank 0.

    When a rank dies, all are started again from the last `checkpoint()` on the rest of the cluster; a new one
    resets the count of restarts. ValueError or OSError of the ranks, RuntimeError after
    `run.max_restarts`."""
    restarts, known, died, most = 0, checkpoint(), False, config.run.max_restarts
    while True:
        try:
            with _ranks(config, died) as tasks:
                return _watched(tasks, look)
        except (RayActorError, RayTaskError) as error:
            if not _another_died(error):
                raise error.cause if isinstance(error.cause, ValueError | OSError) else error from None
            newest, died = checkpoint(), True
            restarts, known = (1 if newest != known else restarts + 1), newest
            reason = str(error).splitlines()[0]
            if restarts > most:
                raise RuntimeError(
                    f"a rank died {restarts} times without a new checkpoint ({reason}); see RUN/stacks and "
                    f"the Ray logs"
                ) from None
            start = newest or "the beginning"
            say(f"a rank died ({reason}); starting again from {start} ({restarts} of at most {most})")


def _another_died(error: RayActorError | RayTaskError) -> bool:
    """By Ray's error, or by that of a rank whose exchange with the dead one broke."""
    if isinstance(error, RayActorError):
        return True
    return isinstance(error.cause, RuntimeError) and any(word in str(error.cause) for word in BROKEN)


def _watched(tasks: list[Any], look: Callable[[], None]) -> str:
    left = list(tasks)
    while left:
        ready, left = ray.wait(left, num_returns=1, timeout=LOOK_S)
        look()
        for task in ready:
            ray.get(task)  # raises what the rank raised
    return ray.get(tasks[0])


@contextlib.contextmanager
def _ranks(config: Config, patient: bool) -> Iterator[list[Any]]:
    """Tasks, whose processes end with the block."""
    group, plan = _placed(config, patient)
    actors = []
    try:
        for i in range(plan.ranks):
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
            options = {"num_cpus": plan.cpus, "num_gpus": plan.gpus, "scheduling_strategy": strategy}
            actors.append(Rank.options(**options).remote())
        places = ray.get([a.where.remote() for a in actors], timeout=PLACE_S)
        hosts, ports = zip(*places, strict=True)
        common = {"MASTER_ADDR": hosts[0], "MASTER_PORT": ports[0], "WORLD_SIZE": plan.ranks}
        tasks = []
        for i, actor in enumerate(actors):
            local = 0 if plan.gpus else hosts[:i].count(hosts[i])
            own = {"RANK": i, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": hosts.count(hosts[i])}
            tasks.append(actor.train.remote(config, {k: str(v) for k, v in (common | own).items()}))
        yield tasks
    finally:
        for actor in actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        remove_placement_group(group)


def _placed(config: Config, patient: bool) -> tuple[PlacementGroup, Layout]:
    """`patient`: after a death, when the cluster may need time."""
    deadline = time.monotonic() + PLACE_S
    while True:
        try:
            plan = layout(config)
        except ValueError:
            if not patient or time.monotonic() > deadline:
                raise
            time.sleep(1.0)
            continue
        group = placement_group(plan.bundles, strategy="PACK")
        if group.wait(timeout_seconds=min(10.0, PLACE_S)):
            return group, plan
        remove_placement_group(group)
        if time.monotonic() > deadline:
            raise ValueError(
                f"the cluster has no room for {plan.ranks} ranks of {plan.cpus:g} CPUs and {plan.gpus:g} "
                f"GPUs within {PLACE_S:.0f} s: other jobs hold them; wait, or lower run.ranks"
            )
