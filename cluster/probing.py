"""Headers read on all nodes of a Ray cluster, near the data: a task takes a few files through a child process
of its worker, which stays for the next task."""

import os
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import ray

from cluster.pools import available_cpus
from cluster.session import alive, check_nodes, session
from stages.label.scan import probe_pool
from stages.label.scan.probing import UNREADABLE

BATCH = 64  # files of a task: on S3 some seconds
AHEAD = 2  # tasks asked for, for each that can run
LOOK_S = 5.0  # between looks for nodes that came or went
_children: list = []  # of this worker

Outcome = tuple[tuple, dict[str, Any]]


@ray.remote(max_retries=-1, scheduling_strategy="SPREAD")  # a lost node's tasks run again elsewhere
def _probe(files: list[tuple]) -> list[Outcome]:
    return list(probe_pool.probe_all(files, 1, _children))


def probe_all(files: Iterable[tuple], workers: int, roots: list[str]) -> Iterator[Outcome]:
    """As `probe_pool.probe_all`: with RAY_ADDRESS on all nodes of that cluster, as many at once on each as
    `workers` are of this machine's CPUs, else here. ValueError naming a node that does not see the roots."""
    source = iter(files)
    first = list(islice(source, BATCH))
    if not first or (os.environ.get("RAY_ADDRESS") or "local") == "local":
        yield from probe_pool.probe_all(chain(first, source), workers)
        return
    with session() as here:
        check_nodes(None, roots)
        cpus = available_cpus() / workers
        cpus = min(int(cpus), int(here.node_cpus)) if cpus >= 1 else cpus
        try:
            yield from _spread(chain(first, source), workers, cpus)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise OSError(
                f"the Ray cluster failed ({str(error).splitlines()[0]}); what was read is kept, run again"
            ) from None


def _spread(source: Iterator[tuple], workers: int, cpus: float) -> Iterator[Outcome]:
    running: dict[Any, list[tuple]] = {}
    most, looked = 0, float("-inf")
    while True:
        if time.monotonic() - looked >= LOOK_S:
            looked, total = time.monotonic(), sum(node["Resources"]["CPU"] for node in alive())
            most = AHEAD * max(1, int(total / cpus))
        while len(running) < most and (batch := list(islice(source, BATCH))):
            running[_probe.options(num_cpus=cpus).remote(batch)] = batch
        if not running:
            return
        ready, rest = ray.wait(list(running), timeout=LOOK_S)
        ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0] if ready and rest else []
        for answer in ready:
            batch, outcomes = running.pop(answer), ray.get(answer)
            if all((facts["reason"] or "").startswith(UNREADABLE) for _, facts in outcomes):
                # Its node may have lost the audio, which was listed on this one.
                outcomes = probe_pool.probe_all(batch, workers)
            yield from outcomes
