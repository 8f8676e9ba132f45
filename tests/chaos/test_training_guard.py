"""Labels out of all proportion, met while training: the update is skipped, the run goes back and past the
data, or stops."""

import json

import pytest

from stages.pretrain.data.state import State
from stages.shards.storage import Storage
from tests.chaos.training import Ranks, configured, rows
from tests.stages.pretrain.corpus import Corpus


class Loud(Corpus):
    """One recording's CQT is a thousand times the others'."""

    def _recording(self, rng, recording, samples):
        super()._recording(rng, recording, samples)
        if len(self.waves) == 5:
            self.cqt[recording] *= 1000


@pytest.mark.slow  # in one process: tests/stages/pretrain/test_loop_guard.py
@pytest.mark.parametrize("then", ["stop", "restore"])
def test_a_loss_that_jumps(tmp_path, then):
    Loud(str(tmp_path / "corpus")).write(shards=4, recordings=3, segments=4, valid=2).gather()
    config = configured(
        tmp_path, updates=10, more=f"guard: {{window: 1, spike: 10, in_a_row: 1, then: {then}}}\n"
    )
    # A fit over the loud recording would begin with errors as large as the jump.
    with Ranks(config, 1, "checkpoints.every_updates=1", "objective.cqt_start=default") as ranks:
        code = ranks.wait()
    skipped = rows(tmp_path, "skipped")
    assert skipped and all(row["loss"] > 1000 for row in skipped), ranks.text()
    assert "Traceback" not in ranks.text()
    if then == "stop":
        assert code == 2 and "1 updates in a row had a loss that jumped or was not finite" in ranks.text(), (
            ranks.text()
        )
        return
    assert code == 0, ranks.text()
    restored = rows(tmp_path, "restored")
    assert len(restored) == len(skipped)
    place = Storage(str(tmp_path / "toy" / "checkpoints"))
    name = place.read("latest").decode().strip()
    state = State.from_json(json.loads(place.read(f"{name}/state.json"))["state"])
    assert len(state.skipped) >= 1 and state.update == 10
    assert [row["update"] for row in rows(tmp_path)] == list(range(1, 11))
    assert all(row["loss"] < 100 for row in rows(tmp_path) if row["grad_norm"] is not None)
