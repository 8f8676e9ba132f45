"""Who works on what and where: with hand-made nodes, workers that answer as they are told, and no clock."""

from collections import deque
from dataclasses import dataclass, field

import pytest

from cluster import chain as module
from cluster import losses, placing
from cluster.chain import run_chain
from cluster.crew import Node, whole
from cluster.pools import StageSpec, check_fits
from cluster.stage import Stage
from stages.label.base import Needs

MANY = 64 * 2**30


def node(name: str, cpus: float = 4, gpus: float = 0) -> Node:
    return Node(name, cpus, gpus, MANY)


@dataclass(eq=False)
class Worker:
    node: str
    stage: str
    cpus: float
    alive: bool = True
    shard: str = ""
    given: list = field(default_factory=list)  # (shard, payload)

    def begin(self, shard: str, payload) -> bool:
        self.shard = shard
        self.given.append((shard, payload))
        return self.alive

    def close(self, patience_s: float = 0.0) -> None:
        self.alive = False


class Crew:
    """`answers`: (stage, shard) → what its workers answer, one after the other: facts, "dies", "lost", or a
    function of the worker. `steps`: what happens between two looks."""

    def __init__(self, *nodes: Node, answers: dict | None = None, steps: list | None = None):
        self.there = list(nodes)
        self.answers = {key: deque(told) for key, told in (answers or {}).items()}
        self.steps, self.workers, self.waited = deque(steps or ()), [], []
        self.gone: set[Worker] = set()
        self.held: set[str] = set()  # nodes on which no worker comes

    def nodes(self) -> list[Node]:
        return list(self.there)

    def start(self, spec: StageSpec, cpus: float, node: Node) -> Worker:
        self.workers.append(Worker(node.name, spec.name, cpus))
        return self.workers[-1]

    def ended(self, busy: list[Worker], timeout_s: float) -> list[tuple[Worker, dict | None]]:
        self.waited.append(timeout_s)
        if self.steps:
            self.steps.popleft()(self)
            return []
        return [(worker, self._answer(worker)) for worker in busy]

    def _answer(self, worker: Worker) -> dict | None:
        told = self.answers.get((worker.stage, worker.shard))
        told = told.popleft() if told else {}
        if callable(told):
            told = told(worker)
        if told == "lost":
            self.gone.add(worker)
        if told in ("dies", "lost"):
            return None
        return {"shard": worker.shard, "stage": worker.stage, "status": "finished", "error": None} | told

    def lost(self, worker: Worker) -> bool:
        return worker in self.gone

    def crowded(self, busy: list[Worker]) -> list[Worker]:
        return [worker for worker in busy if worker.node in self.held]

    def of(self, stage: str) -> list[str]:
        """Nodes of a stage's workers, in the order of their start."""
        return [worker.node for worker in self.workers if worker.stage == stage]


def spec(name: str, cpus: float = 1, gpus: float = 0, most: int | None = None, cpu_s: float = 1) -> StageSpec:
    return StageSpec(name, None, Needs(cpus, gpus, 1), most, cpu_s)


def ran(crew: Crew, *specs: StageSpec, shards=("s0", "s1", "s2"), **options) -> tuple[dict, list]:
    events = []
    rows = list(run_chain(list(specs), list(shards), crew, on_event=events.append, **options))
    assert sorted(row["shard"] for row in rows) == sorted(shards), "each shard leaves once"
    assert not [worker for worker in crew.workers if worker.alive]
    return {row["shard"]: row for row in rows}, events


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


def told(events: list, kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


def test_every_shard_goes_through_every_stage_and_only_the_first_is_given_the_plan():
    crew = Crew(node("a"))
    rows, events = ran(crew, spec("one"), spec("two"), payload=lambda shard: [shard])
    assert rows == {s: {"shard": s, "one": "finished", "two": "finished"} for s in ("s0", "s1", "s2")}
    given = {
        stage: [g for w in crew.workers if w.stage == stage for g in w.given] for stage in ("one", "two")
    }
    assert sorted(given["one"]) == [(s, [s]) for s in ("s0", "s1", "s2")]
    assert sorted(given["two"]) == [(s, None) for s in ("s0", "s1", "s2")]
    assert len(told(events, "begin")) == len(told(events, "end")) == 6
    assert {event["attempts"] for event in told(events, "end")} == {1}


def test_what_a_stage_fails_goes_no_further_and_what_it_rejects_is_added_up():
    crew = Crew(
        node("a"),
        answers={
            ("one", "s1"): [{"status": "failed", "error": "torn"}],
            ("one", "s0"): [{"kept": 9, "rejected": 1}],
            ("two", "s0"): [{"kept": 7, "rejected": 2}],
        },
    )
    rows, _ = ran(crew, spec("one"), spec("two"))
    assert rows["s1"] == {"shard": "s1", "one": "failed", "failed": "one", "error": "torn", "fatal": False}
    assert (rows["s0"]["recordings"], rows["s0"]["rejected"]) == (10, 3)


# Work goes to the node that made what it needs.


def given_in_turn(stage: str, crew: Crew) -> list[tuple[str, str]]:
    """(node, shard) of a stage."""
    return [(w.node, shard) for w in crew.workers if w.stage == stage for shard, _ in w.given]


def test_a_worker_takes_what_its_own_node_has_made():
    """Stage one has a worker on each node and so has stage two; in the one `a` is always first, in the other
    last."""

    class Crossed(Crew):
        def ended(self, busy, timeout_s):
            order = sorted(
                busy, key=lambda worker: (worker.stage, (worker.stage == "two") ^ (worker.node == "b"))
            )
            return super().ended(order, timeout_s)

    shards = [f"s{i}" for i in range(40)]
    crew = Crossed(node("a", 2), node("b", 2))
    ran(crew, spec("one", most=2), spec("two", most=2), shards=shards)
    made = {shard: where for where, shard in given_in_turn("one", crew)}
    assert {where for where in made.values()} == {"a", "b"}
    own = [made[shard] == where for where, shard in given_in_turn("two", crew)]
    assert sum(own) >= 38, "a stage that is done gives its worker to another one, at the end"


def stage_of(*rows: tuple[str, str]) -> Stage:
    stage = Stage(spec("two"))
    stage.waiting.extend({"shard": shard, "node": where} for shard, where in rows)
    return stage


def test_it_looks_at_those_that_wait_longest_only():
    rows = [(f"s{i}", "a") for i in range(40)]
    near, far = stage_of(*rows[:31], ("own", "b")), stage_of(*rows[:32], ("own", "b"))
    assert near.take("b", near=True)["shard"] == "own" and far.take("b", near=True) is None
    assert far.take("b", near=False)["shard"] == "s0", "none is left idle for it"


def test_none_waits_for_ever_for_a_worker_of_its_node():
    stage = stage_of(("first", "x"), *((f"s{i}", "a") for i in range(100)))
    taken = [stage.take("a", near=True)["shard"] for _ in range(40)]
    assert taken.index("first") == 32 and taken[33] == "s32"


def test_no_worker_is_left_idle_for_the_sake_of_a_node():
    crew = Crew(node("a", 1), node("b", 1))
    chain = module.Chain([spec("one"), spec("two")], crew, 3, lambda event: None, lambda shard: None)
    stage = chain.stages[1]
    stage.waiting.extend({"shard": s, "node": "b"} for s in ("s0", "s1", "s2"))
    chain.placing.look()
    stage.most = 2
    chain.placing.man(stage)
    chain._give(stage)
    assert {w.node: w.shard for w in stage.busy} == {"b": "s0", "a": "s1"} and not stage.idle


# Workers that die.


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_shard_that_kills_its_worker_is_given_up_after_so_many(attempts):
    crew = Crew(node("a"), answers={("one", "s1"): ["dies"] * 9})
    rows, events = ran(crew, spec("one"), attempts=attempts)
    assert rows["s1"]["error"] == f"the worker died {attempts} times on this shard (out of memory?)"
    assert rows["s0"] == {"shard": "s0", "one": "finished"}
    assert [e["shard"] for e in told(events, "begin")].count("s1") == attempts
    assert [e["error"] for e in told(events, "again")] == ["its worker died"] * (attempts - 1)
    assert {e["shard"]: e["attempts"] for e in told(events, "end")}["s1"] == attempts


def lost_nodes(times: dict[str, int], answers: dict | None = None) -> Crew:
    """Each worker on a node of its own; `times`: how often each shard's is lost."""
    told = {("one", shard): ["lost"] * count for shard, count in times.items()}
    return Crew(*(node(name, 1) for name in "abcd"), answers=told | (answers or {}))


def test_a_lost_node_uses_up_no_attempt():
    crew = lost_nodes({"s1": losses.IN_A_ROW - 1})
    rows, events = ran(crew, spec("one"), attempts=1)
    assert rows["s1"] == {"shard": "s1", "one": "finished"}
    assert {e["error"] for e in told(events, "again")} == {"its node was lost"}
    assert {e["shard"]: e["attempts"] for e in told(events, "end")}["s1"] == losses.IN_A_ROW


def test_a_shard_that_takes_its_node_down_each_time_is_given_up():
    crew = lost_nodes({"s1": 99})
    rows, events = ran(crew, spec("one"), spec("two"))
    why = "the last 5 nodes that were lost were all working on this shard"
    assert rows["s1"] == {"shard": "s1", "one": "failed", "failed": "one", "error": why, "fatal": False}
    assert all(rows[s]["two"] == "finished" for s in ("s0", "s2"))
    assert {e["shard"]: e["attempts"] for e in told(events, "end") if e["stage"] == "one"}["s1"] == 5


def test_nodes_that_are_lost_elsewhere_are_no_fault_of_a_shard():
    """Of three workers at a time, each on its own node, which are all taken away again and again."""
    shards = [f"s{i}" for i in range(4)]
    crew = lost_nodes(dict.fromkeys(shards, 2 * losses.IN_A_ROW))
    rows, events = ran(crew, spec("one", most=3), shards=shards, attempts=1)
    assert all(row == {"shard": s, "one": "finished"} for s, row in rows.items())
    assert len(told(events, "again")) == 8 * losses.IN_A_ROW


def test_a_shard_whose_node_is_lost_again_and_again_is_given_up_among_others_that_are_lost():
    shards = [f"s{i}" for i in range(4)]
    rows, _ = ran(lost_nodes(dict.fromkeys(shards, 99)), spec("one", most=3), shards=shards)
    assert any(row["error"] == "its node was lost 25 times" for row in rows.values())
    assert {row["one"] for row in rows.values()} == {"failed"}


def test_a_node_that_is_lost_with_several_workers_is_one_loss():
    crew = Crew(node("a", 4), answers={("one", s): ["lost"] * 4 for s in ("s0", "s1", "s2")})
    rows, events = ran(crew, spec("one", most=3), attempts=1)
    assert len(told(events, "again")) == 12 and {row["one"] for row in rows.values()} == {"finished"}


# Nodes that others hold.


def test_a_shard_whose_worker_finds_no_room_on_its_node_goes_to_another_node():
    crew = Crew(node("a", 2), node("b", 1), steps=[lambda crew: None])
    crew.held = {"a"}
    rows, events = ran(crew, spec("one"), attempts=1)
    assert {row["one"] for row in rows.values()} == {"finished"}
    assert [e["node"] for e in told(events, "crowded")] == ["a"]
    assert {e["error"] for e in told(events, "again")} == {"others hold its node"}
    assert crew.of("one").count("a") == 2, "it is not tried there again at once"


def test_where_others_hold_every_node_it_waits_for_one(monkeypatch):
    crew = Crew(node("a", 1), steps=[lambda crew: None] * 9)
    crew.held = {"a"}
    rows, events = ran(crew, spec("one"), attempts=1)
    assert {row["one"] for row in rows.values()} == {"finished"} and not told(events, "again")
    assert crew.of("one") == ["a"]


def test_where_others_hold_all_nodes_each_is_tried_in_turn():
    """Also one that had room, and was only slow."""
    free = [lambda crew: crew.held.clear()]
    crew = Crew(node("a", 1), node("b", 1), steps=[lambda crew: None] * 9 + free)
    crew.held = {"a", "b"}
    rows, events = ran(crew, spec("one"), shards=["s0"], attempts=1)
    assert rows["s0"]["one"] == "finished"
    assert crew.of("one")[:6] in (["a", "b"] * 3, ["b", "a"] * 3)
    assert sorted(e["node"] for e in told(events, "crowded")) == ["a", "b"], "told once"


def test_a_node_that_others_held_is_tried_again_later(monkeypatch):
    monkeypatch.setattr(placing, "CROWDED_S", 0.0)
    crew = Crew(node("a", 2), node("b", 1), steps=[lambda crew: crew.held.clear()])
    crew.held = {"a"}
    ran(crew, spec("one"), shards=[f"s{i}" for i in range(9)])
    assert crew.of("one").count("a") == 4, "two that were left, two that found room"


def test_a_worker_that_died_while_it_was_idle_costs_nothing():
    crew = Crew(node("a"), steps=[lambda crew: setattr(crew.workers[1], "alive", False)])
    rows, events = ran(crew, spec("one", most=1), spec("two", most=1), attempts=1)
    assert all(row["two"] == "finished" for row in rows.values()) and not told(events, "again")


# What fails for a while.


def test_a_read_that_failed_is_tried_again_later_and_on_another_node(monkeypatch):
    pauses, clock = [], [0.0]
    monkeypatch.setattr(module, "PAUSE_S", 2.0)
    monkeypatch.setattr(module.random, "random", lambda: 0.5)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    class Waiting(Crew):
        def ended(self, busy, timeout_s):
            if not busy:
                pauses.append(timeout_s)
                clock[0] += timeout_s
            return super().ended(busy, timeout_s)

    where = []

    def failing(worker):
        where.append(worker.node)
        return {"status": "failed", "error": "503", "transient": True}

    crew = Waiting(node("a"), node("b"), answers={("one", "s0"): [failing] * 2})
    rows, events = ran(crew, spec("one"), shards=["s0"])
    assert rows["s0"] == {"shard": "s0", "one": "finished"} and sorted(where) == ["a", "b"]
    assert [e["pause_s"] for e in told(events, "again")] == [3.0, 6.0] and sum(pauses) == pytest.approx(9.0)
    assert max(pauses) <= module.LOOK_S and len(told(events, "end")) == 1


def test_what_does_not_go_away_fails_its_shard():
    crew = Crew(
        node("a"), answers={("one", "s1"): [{"status": "failed", "error": "503", "transient": True}] * 9}
    )
    rows, events = ran(crew, spec("one"), attempts=3)
    assert rows["s1"]["error"] == "503" and not rows["s1"]["fatal"] and len(told(events, "again")) == 3


def test_a_shard_waits_for_a_busy_worker_of_another_node_rather_than_fail_there_again():
    """`b` is busy with s1 when s0 has failed on `a`."""
    where = []

    def failing(worker):
        where.append(worker.node)
        return {"status": "failed", "error": "ESTALE", "transient": True}

    crew = Crew(node("a", 1), node("b", 1), answers={("one", "s0"): [failing]})
    chain = module.Chain([spec("one", cpu_s=9)], crew, 3, lambda event: None, lambda shard: None)
    stage = chain.stages[0]
    stage.waiting.extend({"shard": s} for s in ("s0", "s1"))
    chain.placing.look()
    stage.most = 2
    chain.placing.man(stage)
    chain._give(stage)
    first = next(worker for worker in stage.busy if worker.shard == "s0")
    chain._end(stage, first, failing(first))
    chain._due(stage)
    chain._give(stage)
    assert [row["shard"] for row in stage.again] == ["s0"] and len(stage.idle) == 1
    chain._end(stage, next(iter(stage.busy)), crew._answer(next(iter(stage.busy))))
    chain._give(stage)
    [worker] = stage.busy
    assert worker.shard == "s0" and worker.node != where[0]


# Nodes where a stage cannot be opened.


def refuse(name: str, why: str):
    """Of one node, or, without a name, of every one."""
    return lambda worker: (
        {"status": "failed", "unopened": why} if worker.node == (name or worker.node) else {}
    )


def test_a_node_that_cannot_open_a_worker_is_left_out_and_the_others_go_on():
    bad = refuse("a", "no room in TMPDIR")
    crew = Crew(node("a"), node("b"), answers={("one", f"s{i}"): [bad] * 9 for i in range(4)})
    rows, events = ran(crew, spec("one"), shards=["s0", "s1", "s2", "s3"], attempts=1)
    assert all(row["one"] == "finished" for row in rows.values())
    assert {(e["node"], e["error"]) for e in told(events, "left-out")} == {("a", "no room in TMPDIR")}
    last = max(i for i, e in enumerate(events) if e["event"] == "left-out")
    assert {e["host"] for e in events[last:] if e["event"] == "begin"} == {"b"}


def test_where_no_node_opens_it_every_shard_fails_alike_at_once():
    crew = Crew(
        node("a"), node("b"), answers={("one", f"s{i}"): [refuse("", "no weights")] * 9 for i in range(3)}
    )
    rows, _ = ran(crew, spec("one"), spec("two"))
    assert {(row["error"], row["fatal"]) for row in rows.values()} == {("no weights", True)}
    assert not [worker for worker in crew.workers if worker.stage == "two" and worker.given]


# Nodes that come and go.


def test_a_stage_without_a_gpu_waits_for_a_node_that_has_one():
    class Late(Crew):
        looks = 0

        def nodes(self):
            self.looks += 1
            return [*self.there, node("g", 8, 1)][: 1 + (self.looks > 20)]

    crew = Late(node("a"))
    rows, events = ran(crew, spec("decode"), spec("codes", gpus=1))
    assert told(events, "waits") == [{"event": "waits", "stage": "codes", "gpus": 1}]
    assert all(row["codes"] == "finished" for row in rows.values())
    assert crew.of("codes") == ["g"] and "a" in crew.of("decode")


def test_pools_grow_with_the_nodes():
    shards = [f"s{i}" for i in range(40)]
    crew = Crew(node("a", 4), steps=[lambda crew: crew.there.append(node("b", 16))])
    ran(crew, spec("one"), shards=shards)
    assert crew.of("one").count("a") == 3 and 12 <= crew.of("one").count("b") <= 16


def test_decoding_leaves_a_gpu_node_the_cpus_that_its_gpus_need():
    """Else the stage before the teacher would take all CPUs of its node, and the GPUs would stand idle."""
    shards = [f"s{i}" for i in range(40)]
    crew = Crew(node("a", 4), node("g", 4, 4))
    ran(crew, spec("decode", cpu_s=100), spec("codes", gpus=1, cpu_s=0.01), shards=shards)
    assert crew.of("codes").count("g") >= 1 and crew.of("decode").count("g") == 0
    assert crew.of("decode").count("a") == 4


def test_a_stages_first_worker_takes_what_room_there_is():
    crew = Crew(node("a", 1))
    rows, _ = ran(crew, spec("one"), spec("two"), spec("three", cpus=0.5), shards=["s0", "s1"])
    assert all(row["three"] == "finished" for row in rows.values())
    assert [worker.stage for worker in crew.workers][:3] == ["one", "two", "three"]
    assert sum(worker.cpus for worker in crew.workers[:3]) <= 1


def test_a_stage_that_is_done_gives_its_cpus_to_the_later_ones():
    shards = [f"s{i}" for i in range(12)]
    crew = Crew(node("a", 4))
    ran(crew, spec("one", cpu_s=100, most=4), spec("two", cpu_s=1), shards=shards)
    assert len(crew.of("two")) > 1


def test_no_more_workers_than_asked_for():
    crew = Crew(node("a", 16))
    ran(crew, spec("one", most=2), shards=[f"s{i}" for i in range(9)])
    assert len(crew.of("one")) == 2


def test_missing_gpus_are_refused_beforehand_only_where_no_node_can_join():
    here = whole([node("a")])
    with pytest.raises(ValueError, match="stage codes asks for 1 GPU, the cluster has 0"):
        check_fits([spec("codes", gpus=1)], here)
    assert check_fits([spec("codes", gpus=1)], here._replace(grows=True)) is None


def test_what_waits_is_not_looked_through_for_every_shard():
    """At 160,000 shards that would be what the driver does."""
    import time

    took = {}
    for count in (500, 4000):
        crew = Crew(node("a", 8))
        begun = time.process_time()
        ran(crew, spec("one"), spec("two"), shards=[f"s{i:05}" for i in range(count)])
        took[count] = (time.process_time() - begun) / count
    assert took[4000] < 3 * took[500]
