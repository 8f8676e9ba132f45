"""Ray without its processes: remote calls that run at once, failures as `ray.get` raises them, hand-made
clocks and nodes."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from ray.exceptions import RayTaskError


class Local:
    """Stands for an actor's handle: `handle.method.remote(…)` calls the method of `instance` here and gives
    its value."""

    def __init__(self, instance: Any):
        self._instance = instance

    def __getattr__(self, name: str) -> "Local":
        return type(self)(getattr(self._instance, name))

    def remote(self, *arguments: Any) -> Any:
        return self._instance(*arguments)


class Later(Local):
    """As `Local`, but the call runs when it is waited for, by `got`; one that nobody waits for never does."""

    def remote(self, *arguments: Any) -> Any:
        return partial(self._instance, *arguments)


def got(task: Callable[[], Any], timeout: float | None = None) -> Any:
    """`ray.get` of what a `Later` gave."""
    return task()


def plain(remote_class: Any) -> type:
    """The class below `@ray.remote`."""
    return remote_class.__ray_metadata__.modified_class


def raised_in_task(cause: Exception) -> RayTaskError:
    """What `ray.get` raises when a task raised `cause`."""
    return RayTaskError(
        "train()", f"ray::Rank.train()\n{type(cause).__name__}: {cause}", cause
    ).as_instanceof_cause()


def node(cpus: float, gpus: float = 0, name: str = "n1", alive: bool = True) -> dict:
    """A node as `ray.nodes()` describes it."""
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return {
        "NodeID": name,
        "NodeManagerAddress": f"address-of-{name}",
        "Alive": alive,
        "Resources": {k: v for k, v in resources.items() if v},
    }


def finished(shard: str) -> dict:
    """What a worker of the stage `codes` says of a shard that is done."""
    return {"shard": shard, "stage": "codes", "status": "finished"}


class Threads:
    """`threading` for a module that is tested: keeps the threads that were begun through it."""

    Event, Lock = threading.Event, threading.Lock

    def __init__(self):
        self.begun: list[threading.Thread] = []

    def Thread(self, **options: Any) -> threading.Thread:  # noqa: N802 - threading's own name
        self.begun.append(threading.Thread(**options))
        return self.begun[-1]


class Clock:
    """`time` whose seconds pass only while something sleeps or waits."""

    def __init__(self, now: float = 1000.0):
        self.now = now
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passes(seconds)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 2000, "it waits for ever"


class Group:
    """A placement group; `fits()` says whether it gets its room, and `clock` passes while it does not."""

    def __init__(self, bundles: list[dict], strategy: str, clock: Clock, fits: Callable[[], bool]):
        self.bundles, self.strategy, self.clock, self.fits = bundles, strategy, clock, fits
        self.waited: list[float] = []
        self.removed = 0

    def wait(self, timeout_seconds: float) -> bool:
        self.waited.append(timeout_seconds)
        if self.fits():
            return True
        self.clock.passes(timeout_seconds)
        return False
