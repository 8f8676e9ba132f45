"""Training on Ray: the same curve as without it; ranks and nodes that die; Ctrl-C; what cannot be is said."""

import re
import signal
import subprocess
import threading

import pytest

from cluster.simulate import simulated
from tests.chaos.processes import descendants, kill
from tests.chaos.training import Ranks, configured, curve, reach, rows, weights
from tests.conftest import command


class Train:
    """`overtone train` with its output in a file; looks like `Ranks` to `reach`."""

    def __init__(self, config, *overrides: str, **environment: str):
        argv, options = command(
            "train", str(config), *(a for o in overrides for a in ("--set", o)), **environment
        )
        self.output = config.parent / "output.txt"
        with open(self.output, "w") as out:
            self.process = subprocess.Popen(argv, **options, stdout=out, stderr=out)
        self.processes = [self.process]

    def wait(self, timeout_s: float = 300) -> int:
        return self.process.wait(timeout_s)

    def text(self) -> str:
        return self.output.read_text()


def ranks_of(process: subprocess.Popen) -> list[int]:
    return [pid for pid, name in descendants(process.pid).items() if name.startswith("ray::Rank")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Curve and weights of a run without Ray."""
    folder = tmp_path_factory.mktemp("plain")
    with Ranks(configured(folder)) as ranks:
        assert ranks.wait() == 0, ranks.text()
    return curve(folder), weights(folder)


@pytest.mark.slow
def test_a_rank_killed_on_ray_starts_again_by_itself_and_gives_the_curve_without_ray(tmp_path, plain):
    train = Train(configured(tmp_path))
    reach(train, tmp_path, 5)
    assert sum(kill(pid) for pid in ranks_of(train.process)) == 1
    assert train.wait() == 0, train.text()
    assert "a rank died" in train.text() and "Traceback" not in train.text()
    assert curve(tmp_path) == plain[0] and weights(tmp_path) == plain[1]
    assert len(rows(tmp_path, "start")) == 2


@pytest.mark.slow
def test_the_driver_killed_and_ctrl_c(tmp_path, plain):
    config = configured(tmp_path)
    train = Train(config)
    reach(train, tmp_path, 3)
    assert kill(train.process.pid)
    train.wait()
    train = Train(config)
    reach(train, tmp_path, 7, starts=2)  # the orphaned rank may have come as far
    train.process.send_signal(signal.SIGINT)
    assert train.wait() == 130, train.text()
    stopped = rows(tmp_path)[-1]["update"]
    assert f"stopped after update {stopped}" in train.text()
    train = Train(config)
    assert train.wait() == 0, train.text()
    assert f"resumed from u{stopped:08d}" in train.text()
    assert curve(tmp_path) == plain[0] and weights(tmp_path) == plain[1]


@pytest.mark.slow
def test_a_node_killed_during_training_is_done_without(tmp_path):
    config = configured(tmp_path, updates=16)
    with simulated(2) as cluster:
        train = Train(config, RAY_ADDRESS=cluster.address)
        reach(train, tmp_path, 5, 200)
        other = next(node for node in cluster.list_all_nodes() if node != cluster.head_node)
        threading.Thread(target=cluster.remove_node, args=(other, False)).start()
        assert train.wait(400) == 0, train.text()
    assert [row["world"] for row in rows(tmp_path, "start")] == [2, 1]
    assert [row["update"] for row in rows(tmp_path)] == list(range(1, 17))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        pytest.param("run.ranks=64", r"run\.ranks is 64, the cluster has \d+ CPUs", marks=pytest.mark.slow),
        ("data.corpora=[/nowhere]", r"data\.corpora: /nowhere holds no plan\.parquet"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, override, says, run_overtone):
    done = run_overtone("train", configured(tmp_path), "--set", override)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(says, done.stderr), done.stderr
