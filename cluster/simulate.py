"""Several Ray nodes on one machine, for tests and trials: `python -m cluster.simulate 2` starts a head and
one more and prints the RAY_ADDRESS to use."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ray.cluster_utils import Cluster


@contextmanager
def simulated(nodes: int, cpus_per_node: int = 1) -> Iterator[Cluster]:
    """`cluster.address` is for RAY_ADDRESS, `cluster.remove_node` kills a node."""
    head = {"num_cpus": cpus_per_node, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=cpus_per_node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def main() -> None:
    with simulated(int(sys.argv[1]) if len(sys.argv) > 1 else 2) as cluster:
        print(f"RAY_ADDRESS={cluster.address}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
