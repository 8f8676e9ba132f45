"""A first shard on a node of each kind, before the others: with hand-made nodes and workers, and on Ray."""

import pytest

from cluster import canary, sharded
from cluster.canary import tried
from cluster.session import session
from cluster.sharded import StageSpec, run_chain
from cluster.simulate import simulated
from pipeline.labelling.progress import canary_line
from tests.cluster.test_chain import Crew, node, spec
from tests.cluster.test_sharded import Work

KINDS = {"old": {"a", "b"}, "new": {"g"}}
SHARDS = [f"s{i}" for i in range(9)]
SPECS = [spec("decode"), spec("codes", gpus=1), spec("audit")]


def crew(**answers: list) -> Crew:
    told = {tuple(name.split("__")): given for name, given in answers.items()}
    return Crew(node("a"), node("b"), node("g", 4, 1), answers=told)


def outcome(crew: Crew, specs=SPECS) -> tuple[dict, list[dict]]:
    events = []
    bad = tried(specs, SHARDS, crew, KINDS, events.append, lambda shard: [shard])
    assert not [worker for worker in crew.workers if worker.alive]
    return bad, events


def failing(error: str) -> dict:
    return {"status": "failed", "error": error}


def test_each_kind_does_what_it_has_the_gpus_for_on_one_node():
    bad, events = outcome(workers := crew(codes__s1=[{"wall_s": 2.0, "samples": 24_000 * 60}]))
    assert bad == {} and [(e["kind"], e["node"], e["shard"]) for e in events] == [
        ("old", "a", "s0"),
        ("new", "g", "s1"),
    ]
    assert [list(e["stages"]) for e in events] == [["decode"], ["decode", "codes", "audit"]]
    assert [(w.stage, w.given) for w in workers.workers][0] == ("decode", [("s0", ["s0"])])
    assert canary_line(events[1]) == (
        "first shard on g (new): decode finished in 0.0 s; codes finished in 2.0 s, 30 audio-s/s; audit "
        "finished in 0.0 s"
    )


def test_a_shard_that_fails_may_be_the_shards_own_fault():
    bad, events = outcome(crew(decode__s0=[failing("torn")]))
    assert bad == {} and [(e["shard"], e["error"]) for e in events] == [
        ("s0", "torn"),
        ("s1", None),
        ("s2", None),
    ]
    assert canary_line(events[0]) == "first shard on a (old): decode failed in 0.0 s; torn"


def test_a_kind_on_which_two_shards_fail_is_bad():
    bad, events = outcome(crew(codes__s1=[failing("no kernel")], codes__s2=[failing("no kernel")]))
    assert bad.keys() == {"new"} and bad["new"]["error"] == "no kernel" and bad["new"]["failed"] == "codes"
    assert [e["shard"] for e in events] == ["s0", "s1", "s2"]


def test_a_kind_without_a_node_that_has_room_is_neither_good_nor_bad():
    workers = crew()
    workers.held = {"g"}
    bad, events = outcome(workers)
    assert bad == {} and events[1]["error"] == "none of its nodes is there and has room"
    assert canary_line(events[1]).startswith("first shard on no node (new)")


def test_another_node_comes_in_place_of_one_that_others_hold():
    workers = crew()
    workers.held = {"a"}
    workers.steps.extend([lambda crew: None] * 3)
    bad, events = outcome(workers)
    assert bad == {} and workers.of("decode")[:2] == ["a", "b"]


@pytest.fixture(scope="module")
def two_nodes():
    with pytest.MonkeyPatch.context() as patch, simulated(2, 2) as cluster:
        patch.setenv("RAY_ADDRESS", cluster.address)
        with session() as started:
            yield started


def run(started, monkeypatch, many: int = 2) -> tuple[list, list]:
    events = []
    monkeypatch.setattr(canary, "MANY", many)
    links = [StageSpec("one", Work("one")), StageSpec("two", Work("two"))]
    return list(run_chain(links, ["s0", "s1", "s2"], started, 1, events.append)), events


def test_on_a_cluster_a_first_shard_goes_ahead_of_many(two_nodes, monkeypatch):
    rows, events = run(two_nodes, monkeypatch)
    assert sorted(row["shard"] for row in rows) == ["s0", "s1", "s2"]
    assert [events[0]["event"], events[0]["shard"], list(events[0]["stages"])] == [
        "canary",
        "s0",
        ["one", "two"],
    ]
    assert [e["event"] for e in events[1:]].count("end") == 6, "it is counted once"


@pytest.mark.parametrize("grows, many", [(True, 3), (False, 2)])
def test_few_shards_or_one_machine_have_none(two_nodes, monkeypatch, grows, many):
    _, events = run(two_nodes._replace(grows=grows), monkeypatch, many)
    assert "canary" not in {e["event"] for e in events}


def test_what_fails_everywhere_ends_the_run_at_once(two_nodes, monkeypatch):
    row = {"shard": "s0", "one": "failed", "failed": "one", "error": "no weights"}
    monkeypatch.setattr(canary, "tried", lambda specs, shards, crew, kinds, *rest: dict.fromkeys(kinds, row))
    assert run(two_nodes, monkeypatch) == ([row | {"fatal": True}], [])


def test_a_bad_kind_is_left_out_and_the_run_goes_on_elsewhere(two_nodes, monkeypatch):
    one, other = (n["NodeID"] for n in sharded.alive())
    monkeypatch.setattr(sharded, "_kind", {one: "good", other: "bad"}.__getitem__)
    row = {"shard": "s0", "one": "failed", "failed": "one", "error": "no kernel"}
    monkeypatch.setattr(canary, "tried", lambda *given: {"bad": row})
    started = []
    start = sharded.Crew.start
    monkeypatch.setattr(sharded.Crew, "start", lambda *given: started.append(given[3].name) or start(*given))
    rows, events = run(two_nodes, monkeypatch)
    assert [row["two"] for row in rows] == ["finished"] * 3 and set(started) == {one}
    [told] = [e for e in events if e["event"] == "node-left-out"]
    assert (told["node"], told["error"]) == ("of kind bad (1 now)", "one: no kernel")
