"""When ranks die and start again, how they are laid out over a cluster, and what each of them is told."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, WorkerCrashedError

from cluster import trainer
from cluster.trainer import Layout, layout
from stages.pretrain.config import Config, Run
from stages.pretrain.data.settings import Data
from tests.cluster.fakes import Clock, Group, node, raised_in_task


def configured(**run) -> Config:
    return Config(data=Data(), run=Run(**run))


class Script:
    """Starts of all ranks whose ends are known beforehand: an outcome, or what ends them."""

    def __init__(self, monkeypatch, *ends: str | Exception, checkpoints: tuple[str | None, ...] = ()):
        self.ends, self.checkpoints = iter(ends), iter(checkpoints)
        self.newest: str | None = None
        self.patience: list[bool] = []
        self.said: list[str] = []
        self.looks = self.open = 0
        monkeypatch.setattr(trainer, "_ranks", self.ranks)
        monkeypatch.setattr(trainer, "_watched", self.watched)

    @contextmanager
    def ranks(self, config, patient):
        assert not self.open, "ranks of an earlier start are still there"
        assert len(self.patience) < 20, "it starts again for ever"
        self.patience.append(patient)
        self.open += 1
        try:
            yield ["task"]
        finally:
            self.open -= 1

    def watched(self, tasks, look):
        assert tasks == ["task"]
        look()
        end = next(self.ends)
        if isinstance(end, Exception):
            raise end
        return end

    def checkpoint(self) -> str | None:
        """The next of those given; after the last, that one for ever."""
        self.newest = next(self.checkpoints, self.newest)
        return self.newest

    def look(self) -> None:
        self.looks += 1

    def train(self, max_restarts: int = 10) -> str:
        return trainer.train(
            configured(max_restarts=max_restarts), self.look, self.checkpoint, self.said.append
        )


DEATH = ActorDiedError()
SAID = str(DEATH).splitlines()[0]


def test_the_outcome_of_the_ranks_is_returned_and_nothing_is_said(monkeypatch):
    script = Script(monkeypatch, "stopped")
    assert script.train() == "stopped"
    assert script.said == [] and script.patience == [False] and script.looks == 1 and not script.open


def test_after_a_death_all_start_again_from_the_newest_checkpoint_patiently(monkeypatch):
    script = Script(monkeypatch, DEATH, DEATH, "done", checkpoints=(None, None, "u4"))
    assert script.train(3) == "done"
    assert script.said == [
        f"a rank died ({SAID}); starting again from the beginning (1 of at most 3)",
        f"a rank died ({SAID}); starting again from u4 (1 of at most 3)",
    ]
    assert script.patience == [False, True, True] and script.looks == 3


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize("newest", [None, "u4"])
def test_after_so_many_restarts_without_a_new_checkpoint_it_ends(monkeypatch, most, newest):
    script = Script(monkeypatch, *[DEATH] * (most + 1), "done", checkpoints=(newest,))
    with pytest.raises(RuntimeError) as error:
        script.train(most)
    assert (
        str(error.value)
        == f"a rank died {most + 1} times without a new checkpoint ({SAID}); see RUN/stacks and the Ray logs"
    )
    assert error.value.__suppress_context__
    counts = [f"({n} of at most {most})" for n in range(1, most + 1)]
    assert [text[text.index("(", text.index(";")) :] for text in script.said] == counts
    assert len(script.patience) == most + 1 and not script.open


def test_as_many_deaths_as_allowed_are_survived(monkeypatch):
    script = Script(monkeypatch, DEATH, DEATH, "done", checkpoints=("u2",))
    assert script.train(2) == "done"
    assert [text.split("(")[-1] for text in script.said] == ["1 of at most 2)", "2 of at most 2)"]


def test_a_new_checkpoint_starts_the_count_anew(monkeypatch):
    script = Script(monkeypatch, *[DEATH] * 6, "done", checkpoints=("u2", "u2", "u2", "u4", "u4", "u6", "u6"))
    assert script.train(2) == "done"
    assert [text.split("from ")[1] for text in script.said] == [
        f"{name} ({n} of at most 2)"
        for name, n in (("u2", 1), ("u2", 2), ("u4", 1), ("u4", 2), ("u6", 1), ("u6", 2))
    ]


def test_only_deaths_since_the_newest_checkpoint_count_to_the_end(monkeypatch):
    script = Script(monkeypatch, *[DEATH] * 9, checkpoints=("u2", "u2", "u4", "u4", "u4"))
    with pytest.raises(RuntimeError, match="a rank died 3 times without a new checkpoint"):
        script.train(2)
    assert len(script.said) == 3  # one since u2, two since u4; the third since u4 is the end


@pytest.mark.parametrize("cause", [ValueError("a field"), FileNotFoundError("a file"), OSError("no space")])
def test_what_a_user_can_mend_is_raised_as_the_rank_raised_it(monkeypatch, cause):
    script = Script(monkeypatch, raised_in_task(cause), "done")
    with pytest.raises(type(cause)) as error:
        script.train()
    assert error.value is cause and error.value.__suppress_context__
    assert script.said == [] and len(script.patience) == 1


def test_a_defect_is_raised_with_the_traceback_of_the_rank(monkeypatch):
    for cause in (RuntimeError("shapes differ"), TypeError("gloo"), AssertionError("Connection reset")):
        script, raised = Script(monkeypatch, raised_in_task(cause), "done"), None
        with pytest.raises(type(cause)) as error:
            script.train()
        raised = error.value
        assert "ray::Rank.train()" in str(raised) and raised.cause is cause and script.said == []


def test_what_ray_says_of_itself_is_not_taken_for_a_death(monkeypatch):
    script = Script(monkeypatch, WorkerCrashedError(), "done")
    with pytest.raises(WorkerCrashedError):
        script.train()


def test_a_broken_exchange_with_a_dead_rank_is_a_death(monkeypatch):
    script = Script(
        monkeypatch,
        raised_in_task(RuntimeError("[gloo] Connection closed by peer")),
        "done",
        checkpoints=("u2",),
    )
    assert script.train() == "done"
    assert script.said == ["a rank died (ray::Rank.train()); starting again from u2 (1 of at most 10)"]


@pytest.mark.parametrize(
    ("error", "died"),
    [
        (RayActorError(), True),
        (ActorDiedError(), True),
        (ActorUnavailableError("away", None), True),
        (raised_in_task(RuntimeError("... gloo/transport/tcp/pair.cc:534] ...")), True),
        (raised_in_task(RuntimeError("NCCL error: remote process exited")), True),
        (raised_in_task(RuntimeError("Connection closed by peer [127.0.0.1]:1")), True),
        (raised_in_task(RuntimeError("recv: Connection reset by peer")), True),
        (raised_in_task(RuntimeError("CUDA out of memory")), False),
        (raised_in_task(ValueError("gloo is no backend of this machine")), False),
        (raised_in_task(OSError("Connection reset by peer")), False),
    ],
)
def test_who_died(error, died):
    assert trainer._another_died(error) is died


# Watching the ranks.


class Tasks:
    """Ray's `wait` and `get` over tasks that end in a given order; None is a look at which none has ended."""

    def __init__(self, monkeypatch, order: list[str | None], values: dict[str, object]):
        self.order, self.values, self.timeouts = iter(order), values, []
        monkeypatch.setattr(trainer, "ray", SimpleNamespace(wait=self.wait, get=self.get))

    def wait(self, tasks, num_returns, timeout):
        self.timeouts.append((num_returns, timeout))
        ended = next(self.order)
        assert ended is None or ended in tasks
        return [ended] if ended else [], [t for t in tasks if t != ended]

    def get(self, task):
        value = self.values[task]
        if isinstance(value, Exception):
            raise value
        return value


def test_the_outcome_is_that_of_rank_0_whoever_ends_first_and_all_are_waited_for(monkeypatch):
    tasks, looks = Tasks(monkeypatch, [None, "c", "a", None, "b"], {"a": "zero", "b": "one", "c": "two"}), []
    given = ["a", "b", "c"]
    assert trainer._watched(given, lambda: looks.append(1)) == "zero"
    assert given == ["a", "b", "c"] and len(looks) == 5
    assert tasks.timeouts == [(1, trainer.LOOK_S)] * 5 and 0 < trainer.LOOK_S <= 1


def test_what_one_rank_raises_is_raised_while_the_others_still_work(monkeypatch):
    Tasks(monkeypatch, [None, "b"], {"a": "zero", "b": DEATH, "c": "two"})
    looks = []
    with pytest.raises(ActorDiedError):
        trainer._watched(["a", "b", "c"], lambda: looks.append(1))
    assert len(looks) == 2  # also at the end: the last lines of its log are shown


# Layout.


@pytest.mark.parametrize(
    ("nodes", "ranks", "expected"),
    [
        ([node(8)], None, Layout(1, 8, 0.0)),
        ([node(8)], 3, Layout(3, 2, 0.0)),
        ([node(8)], 8, Layout(8, 1, 0.0)),
        ([node(8), node(4)], None, Layout(2, 4, 0.0)),  # one a node; as many CPUs as the smallest has
        ([node(8), node(4)], 1, Layout(1, 4, 0.0)),
        ([node(8), node(8), node(8)], 4, Layout(4, 6, 0.0)),
        ([node(16, gpus=2)], None, Layout(2, 8, 1.0)),  # one a GPU
        ([node(16, gpus=2), node(8, gpus=4)], None, Layout(6, 4, 1.0)),
        ([node(16, gpus=2), node(8)], None, Layout(2, 8, 1.0)),
        ([node(16, gpus=4)], 2, Layout(2, 8, 1.0)),
        ([node(16, gpus=4)], 4, Layout(4, 4, 1.0)),
        ([node(4), node(0.5)], 4, Layout(4, 1, 0.0)),  # never less than one
    ],
)
def test_one_rank_a_gpu_or_one_a_node_and_the_cpus_shared(monkeypatch, nodes, ranks, expected):
    monkeypatch.setattr(trainer, "alive", lambda: nodes)
    assert layout(configured(ranks=ranks)) == expected


@pytest.mark.parametrize(
    ("nodes", "ranks", "said"),
    [
        (
            [node(16, gpus=2), node(16, gpus=1)],
            4,
            "run.ranks is 4, the cluster has 3 GPUs: lower it, or leave it out",
        ),
        ([node(2), node(2)], 5, "run.ranks is 5, the cluster has 4 CPUs: lower it, or leave it out"),
        ([node(1.5)], 2, "run.ranks is 2, the cluster has 1.5 CPUs: lower it, or leave it out"),
        ([node(2, gpus=4)], None, "run.ranks is 4, the cluster has 2 CPUs: lower it, or leave it out"),
    ],
)
def test_more_ranks_than_there_is_room_for_are_refused_with_both_numbers(monkeypatch, nodes, ranks, said):
    monkeypatch.setattr(trainer, "alive", lambda: nodes)
    with pytest.raises(ValueError) as error:
        layout(configured(ranks=ranks))
    assert str(error.value) == said


def test_each_rank_has_a_bundle():
    assert Layout(2, 4, 1.0).bundles == [{"CPU": 4, "GPU": 1.0}] * 2
    assert Layout(3, 2, 0.0).bundles == [{"CPU": 2}] * 3  # a cluster without GPUs knows no such resource


# Room for them.


class Placing:
    """A cluster whose room is written beforehand, on a clock of its own."""

    def __init__(self, monkeypatch, nodes, fits=lambda: True):
        self.clock, self.groups, self.nodes = Clock(), [], nodes
        monkeypatch.setattr(trainer, "time", self.clock)
        monkeypatch.setattr(
            trainer,
            "alive",
            lambda: self.nodes(self.clock.now - 1000) if callable(self.nodes) else self.nodes,
        )
        monkeypatch.setattr(trainer, "placement_group", self.group)
        monkeypatch.setattr(
            trainer, "remove_placement_group", lambda group: setattr(group, "removed", group.removed + 1)
        )
        self.fits = fits

    def group(self, bundles, strategy):
        self.groups.append(Group(bundles, strategy, self.clock, self.fits))
        return self.groups[-1]


def test_room_is_reserved_for_all_ranks_close_together(monkeypatch):
    placing = Placing(monkeypatch, [node(4)])
    group, plan = trainer._placed(configured(ranks=2), False)
    assert plan == Layout(2, 2, 0.0) and group is placing.groups[0]
    assert group.bundles == plan.bundles and group.strategy == "PACK" and group.waited == [10.0]
    assert not group.removed and placing.clock.slept == []


def test_ranks_for_which_there_is_no_room_are_refused_at_once_before_the_first_start(monkeypatch):
    placing = Placing(monkeypatch, [node(1)])
    with pytest.raises(ValueError, match="the cluster has 1 CPUs"):
        trainer._placed(configured(ranks=2), False)
    assert placing.clock.slept == [] and placing.groups == []


def test_after_a_death_the_cluster_is_given_time_to_grow_again(monkeypatch):
    placing = Placing(monkeypatch, lambda passed: [node(1)] if passed < 5 else [node(4)])
    _, plan = trainer._placed(configured(ranks=2), True)
    assert plan == Layout(2, 2, 0.0) and placing.clock.slept == [1.0] * 5


def test_a_cluster_that_stays_too_small_is_said_after_a_minute(monkeypatch):
    placing = Placing(monkeypatch, [node(1)])
    with pytest.raises(ValueError, match="the cluster has 1 CPUs"):
        trainer._placed(configured(ranks=2), True)
    assert sum(placing.clock.slept) == trainer.PLACE_S + 1 == 61


@pytest.mark.parametrize("patient", [False, True])
def test_room_that_others_hold_is_waited_for(monkeypatch, patient):
    placing = Placing(monkeypatch, [node(4)], lambda: len(placing.groups) == 3)
    group, _ = trainer._placed(configured(), patient)
    assert group is placing.groups[2] and [g.removed for g in placing.groups] == [1, 1, 0]


def test_room_that_others_hold_for_a_minute_is_refused_with_what_was_asked_for(monkeypatch):
    placing = Placing(monkeypatch, [node(8, gpus=2)], lambda: False)
    with pytest.raises(ValueError) as error:
        trainer._placed(configured(), False)
    assert str(error.value) == (
        "the cluster has no room for 2 ranks of 4 CPUs and 1 GPUs within 60 s: "
        "other jobs hold them; wait, or lower run.ranks"
    )
    assert all(group.removed == 1 for group in placing.groups) and len(placing.groups) == 7
