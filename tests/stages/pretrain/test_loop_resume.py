"""Stopped, gone on with, finished: a run in pieces is the run in one."""

import json
import signal

import pytest

from stages.pretrain import loop
from stages.shards.storage import Storage
from tests.chaos.training import CURVE
from tests.stages.pretrain.runs import Quick

pytestmark = pytest.mark.usefixtures("one_thread")
OFTEN = ("watch.validate_every=2", "checkpoints.keep=9", "optim.updates=6")


@pytest.fixture(scope="module")
def whole(configuration, tmp_path_factory):
    """Rows, held-out rows and last weights of a run that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        quick = Quick(patch, configuration, tmp_path_factory.mktemp("whole"))
        assert quick.train(*OFTEN) == loop.DONE
        return curve(quick), losses(quick), quick.weights(6)


def curve(quick: Quick) -> list[dict]:
    return [{name: row[name] for name in CURVE} for row in quick.rows()]


def losses(quick: Quick) -> list[tuple]:
    return [(row["update"], row["loss"]) for row in quick.rows("valid")]


def during(quick: Quick, update: int, action) -> None:
    """Do something when that update's row is written."""
    report = loop.RunLog.update

    def reported(own, number, *rest):
        report(own, number, *rest)
        if number == update:
            action()

    quick.patch.setattr(loop.RunLog, "update", reported)


def stopped(quick: Quick, update: int, *overrides: str) -> str:
    """A run that is asked to stop while that update's row is written, so that it ends after the next."""
    with pytest.MonkeyPatch.context() as patch:
        quick.patch, before = patch, quick.patch
        during(quick, update, lambda: (quick.run / "stop").touch())
        outcome = quick.train(*OFTEN, *overrides)
        quick.patch = before
    return outcome


def test_asked_to_stop_by_a_file_it_saves_and_the_same_command_goes_on_as_if_nothing_had_been(quick, whole):
    assert stopped(quick, 2) == loop.STOPPED == "stopped"
    assert quick.said[-1] == "stopped after update 3; the same command goes on from there"
    assert [row["update"] for row in quick.rows("checkpoint")] == [3] and quick.rows("end") == []
    assert [call["flags"][0] for call in quick.calls] == [False, False, True]
    assert (quick.run / "checkpoints" / "latest").read_text() == "u00000003\n"
    quick.said.clear()
    assert quick.train(*OFTEN) == loop.DONE
    assert f"resumed from u00000003 in {quick.run}" in quick.said and not (quick.run / "stop").exists()
    assert curve(quick) == whole[0] and losses(quick) == whole[1] and quick.weights(6) == whole[2]
    assert [row["update"] for row in quick.rows("start")] == [0, 3]


def test_asked_by_a_signal_it_stops_and_its_handlers_are_given_back(quick):
    before = signal.getsignal(signal.SIGUSR1)
    during(quick, 1, lambda: signal.raise_signal(signal.SIGUSR1))
    assert quick.train(*OFTEN) == loop.STOPPED and [row["update"] for row in quick.rows()] == [1, 2]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_stop_requested_during_an_update_ends_the_run_after_it(quick, monkeypatch):
    """Agreed on after the forward passes: not one update later."""
    forward = loop.Engine.forward

    def stopping(own, *arguments):
        if quick.tried == 2:
            (quick.run / "stop").touch()
        return forward(own, *arguments)

    monkeypatch.setattr(loop.Engine, "forward", stopping)
    assert quick.train(*OFTEN) == loop.STOPPED and [row["update"] for row in quick.rows()] == [1, 2]


def test_the_checkpoint_of_a_stop_is_waited_for(quick, monkeypatch):
    waits, save = [], loop.Checkpoints.save
    monkeypatch.setattr(
        loop.Checkpoints,
        "save",
        lambda own, engine, state, wait: waits.append(wait) or save(own, engine, state, wait),
    )
    stopped(quick, 2, "checkpoints.every_updates=2")
    assert waits == [False, True]


def test_asked_during_the_last_update_it_is_finished(quick):
    assert stopped(quick, 5) == loop.DONE
    assert quick.said[-1].startswith("finished: 6 updates") and quick.training.state.update == 6


def test_a_finished_run_says_so_and_touches_nothing(quick):
    quick.train(*OFTEN)
    before = {
        p: p.read_bytes()
        for p in quick.run.rglob("*")
        if p.is_file() and p.name not in ("run.lock", "run.log")
    }
    quick.said.clear()
    tried = quick.tried
    assert quick.train(*OFTEN) == loop.DONE and quick.tried == tried
    assert quick.said[-1] == (
        f"this run is finished (6 updates in {quick.run}); for more, raise optim.updates with "
        f"--set resume.allow=optim, or choose another run.name"
    )
    assert before == {p: p.read_bytes() for p in before}
    assert (
        quick.train(*OFTEN, "optim.updates=7", "resume.allow=[optim]") == loop.DONE
        and quick.tried == tried + 1
    )


def test_what_was_measured_after_the_checkpoint_is_measured_again_once(quick, whole):
    stopped(quick, 2)
    with open(quick.run / "metrics.jsonl", "a") as file:
        for update in (4, 5):
            file.write(json.dumps({"kind": "update", "update": update, "loss": 0.0}) + "\n")
        file.write('{"kind": "upd')
    quick.train(*OFTEN)
    assert curve(quick) == whole[0]


def test_counters_judge_and_best_go_on_from_the_checkpoint(quick):
    """The saved best is one that no later validation reaches."""
    stopped(quick, 2)
    place = quick.run / "checkpoints" / "u00000003" / "state.json"
    saved = json.loads(place.read_text())
    history = [1.0, 2.0, 3.0]
    saved |= {
        "best": [1e-6, 2],
        "best_update": 2,
        "replaced": 7,
        "judge": {"history": history, "in_a_row": 1, "skipped": 5},
    }
    place.write_text(json.dumps(saved))
    quick.train(*OFTEN)
    assert [(row["replaced"], row["skipped"]) for row in quick.rows()[3:]] == [(7, 5)] * 3
    last = quick.checkpoint(6)
    assert last["best"] == [1e-6, 2] and last["best_update"] == 2 and last["judge"]["history"][:3] == history
    assert (last["judge"]["in_a_row"], len(last["judge"]["history"])) == (0, 6)


def test_a_saved_stretch_of_bad_updates_goes_on(quick):
    stopped(quick, 2)
    place = quick.run / "checkpoints" / "u00000003" / "state.json"
    saved = json.loads(place.read_text())
    saved["judge"]["in_a_row"] = 1
    place.write_text(json.dumps(saved))
    quick.losses = {4: float("nan")}
    with pytest.raises(ValueError, match="2 updates in a row .*, up to update 4"):
        quick.train(*OFTEN, "guard.in_a_row=2")


def test_weights_of_others_are_taken_at_the_begin_alone_and_then_looked_for(quick):
    missing = f"run.init_from={quick.folder}/none.safetensors"
    with pytest.raises(ValueError, match="none.safetensors"):
        quick.train(*OFTEN, missing)
    stopped(quick, 1)
    assert quick.train(*OFTEN, missing) == loop.DONE


@pytest.mark.parametrize(
    ("taken", "weights", "how"),
    [((), "given", "fit"), ((loop.CQT_HEAD,), "given", "default"), ((), None, "fit")],
)
def test_a_head_that_was_given_is_not_fitted(quick, monkeypatch, taken, weights, how):
    asked, look = [], loop.baselines_and_start

    class Taken:
        def __init__(self):
            self.taken = taken

        def __str__(self):
            return "weights of others"

    monkeypatch.setattr(loop, "baselines_and_start", lambda *a: asked.append(a[3]) or look(*a))
    monkeypatch.setattr(loop, "load_into", lambda model, place: Taken())
    stopped(quick, 1, "objective.cqt_start=fit", *([f"run.init_from={weights}"] if weights else []))
    assert ("weights of others" in quick.said) == (weights is not None)
    quick.train(*OFTEN, "objective.cqt_start=fit", *([f"run.init_from={weights}"] if weights else []))
    assert asked == [how, "default"], "a resumed run's head is the checkpoint's"


def test_another_seed_or_batch_is_refused_or_taken_over(quick):
    stopped(quick, 2)
    for changed, allow in (("run.seed=5", "seed"), ("optim.global_batch=8", "global_batch")):
        with pytest.raises(ValueError, match=f"resume.allow={allow}"):
            quick.train(*OFTEN, changed)
    assert (
        quick.train(
            *OFTEN,
            "run.seed=5",
            "optim.global_batch=8",
            "resume.allow=[seed, global_batch]",
            "optim.updates=6",
        )
        == loop.DONE
    )
    state = loop.State.from_json(quick.checkpoint(6)["state"])
    assert (state.seed, state.global_batch, state.epoch, state.consumed) == (5, 8, 1, 24), (
        "another seed's order begins at the next epoch"
    )
    assert quick.calls[-1]["drawn"] == quick.training.model.draw(5, 5)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(quick, monkeypatch):
    def full(own, name, data, write=Storage.write):
        if own.root.endswith("/checkpoints"):
            raise OSError("disk full")
        write(own, name, data)

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(OSError, match="checkpoint at .*/checkpoints could not be written: disk full"):
        quick.train(*OFTEN)
    assert quick.training.watchdog._stopped.is_set(), "the run is closed whatever ends it"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_checkpoints_lie_where_they_are_asked_for(quick, tmp_path):
    quick.train(
        "optim.updates=2",
        f"checkpoints.at={tmp_path}/elsewhere",
        "checkpoints.keep=1",
        "checkpoints.every_updates=1",
    )
    assert (tmp_path / "elsewhere" / "latest").read_text() == "u00000002\n" and not (
        quick.run / "checkpoints"
    ).exists()
    assert [p.name for p in (tmp_path / "elsewhere").glob("u*")] == ["u00000002"]
