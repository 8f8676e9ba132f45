"""Training killed at any moment, stopped, or resumed on another number of ranks: the curve is the undisturbed
one."""

import random
import re
import signal

import pytest

from tests.chaos.training import Ranks, configured, curve, reach, rows, weights


def undisturbed(folder, size: int = 1, **options):
    folder.mkdir()
    with Ranks(configured(folder, **options), size) as ranks:
        assert ranks.wait() == 0, ranks.text()
    return curve(folder), weights(folder)


def killed(folder, size: int, kills: int, seed: int, **options) -> int:
    """Kill a rank at random updates and start the same command again, then let it finish; returns the
    kills."""
    folder.mkdir()
    config, chance, happened = configured(folder, **options), random.Random(seed), 0
    while happened < kills:
        with Ranks(config, size) as ranks:
            done = max([row["update"] for row in rows(folder)], default=0)
            reach(ranks, folder, min(done + chance.randint(1, 3), 11))
            happened += ranks.kill(chance.randrange(size))
    with Ranks(config, size) as ranks:
        assert ranks.wait() == 0, ranks.text()
    return happened


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Curve and weights of one rank, in bf16, never disturbed."""
    return undisturbed(tmp_path_factory.mktemp("expected") / "whole", precision="bf16")


def test_one_rank_killed_twice_gives_the_same_curve(tmp_path, expected):
    # another process reads: the same samples
    assert killed(tmp_path / "killed", 1, 2, 1, precision="bf16", workers=1) == 2
    assert curve(tmp_path / "killed") == expected[0] and len(expected[0]) == 12
    assert weights(tmp_path / "killed") == expected[1]
    assert len(rows(tmp_path / "killed", "start")) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "stage"), [("fp32", 1), ("bf16", 2)])
def test_two_ranks_killed_at_random_give_the_same_curve(tmp_path, precision, stage):
    expected = undisturbed(tmp_path / "whole", 2, precision=precision, stage=stage)
    assert killed(tmp_path / "killed", 2, 6, 7, precision=precision, stage=stage) == 6
    assert curve(tmp_path / "killed") == expected[0]
    assert weights(tmp_path / "killed") == expected[1]


@pytest.mark.slow  # in one process: tests/stages/pretrain/test_loop_resume.py
def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on(tmp_path, expected):
    folder = tmp_path / "stopped"
    folder.mkdir()
    config = configured(folder, precision="bf16")
    with Ranks(config) as ranks:
        reach(ranks, folder, 3)
        ranks.processes[0].send_signal(signal.SIGTERM)
        assert ranks.wait() == 130, ranks.text()
        stopped = rows(folder)[-1]["update"]
        assert f"stopped after update {stopped}" in ranks.text()
        assert (folder / "toy" / "checkpoints" / "latest").read_text().strip() == f"u{stopped:08d}"
    with Ranks(config) as ranks:
        assert ranks.wait() == 0, ranks.text()
        assert f"resumed from u{stopped:08d}" in ranks.text()
    assert curve(folder) == expected[0] and weights(folder) == expected[1]
    with Ranks(config) as ranks:
        assert ranks.wait() == 0 and "this run is finished" in ranks.text()
    with Ranks(config, 1, "run.seed=5") as ranks:
        assert ranks.wait() == 2 and "Traceback" not in ranks.text()
        assert re.search(
            "seed is 5, the run at .* was started with 0.*--set resume.allow=seed", ranks.text()
        ), ranks.text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_another_number_of_ranks_goes_on_with_the_same_global_batches(tmp_path, stage):
    """2 → 1 → 2 ranks. Dropout differs with the ranks, so it is off: what is left is the order of sums."""
    off = "input_dropout: 0.0, hidden_dropout: 0.0, attention_dropout: 0.0"

    def config(folder):
        path = configured(folder, stage=stage)
        path.write_text(path.read_text().replace("layer_drop: 0.2", "layer_drop: 0.2, " + off))
        return path

    folders = [tmp_path / "fixed", tmp_path / "changing"]
    for folder in folders:
        folder.mkdir()
    with Ranks(config(folders[0]), 2) as ranks:
        assert ranks.wait() == 0, ranks.text()
    path = config(folders[1])
    for size, until in ((2, 3), (1, 7)):
        with Ranks(path, size) as ranks:
            reach(ranks, folders[1], until)
            ranks.processes[0].send_signal(signal.SIGTERM)
            ranks.wait()
    with Ranks(path, 2) as ranks:
        assert ranks.wait() == 0, ranks.text()
    assert [row["world"] for row in rows(folders[1], "start")] == [2, 1, 2]
    for fixed, changing in zip(curve(folders[0]), curve(folders[1]), strict=True):
        assert (fixed["update"], fixed["samples"]) == (changing["update"], changing["samples"])
        assert changing["loss"] == pytest.approx(fixed["loss"], rel=1e-5)
