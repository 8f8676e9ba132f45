"""What makes the host of a GPU wait within an update: nothing before the sums are read, behind the last
backward pass. Seen on a CPU by the operations that would."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.pretrain.data.crops import Reader
from stages.pretrain.loop import Training
from stages.pretrain.run.engine import Engine
from stages.pretrain.run.world import Agreed
from tests.stages.pretrain.runs import STILL, Quick

pytestmark = pytest.mark.usefixtures("one_thread")
# Their results' values or sizes are needed on the host.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "item"}


class Waits(TorchDispatchMode):
    """Operations that wait, in each part of an update."""

    def __init__(self):
        super().__init__()
        self.part, self.found = "", []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if name in WAITING or by_mask:
            self.found.append((self.part, name))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("setting", ["objective.visible_weight=0", "objective.visible_weight=0.5"])
def test_nothing_waits_for_the_device_before_the_sums_are_read(configuration, tmp_path, monkeypatch, setting):
    waits, run, forward, read, batch = Waits(), Training.run, Engine.forward, Agreed.read, Reader.batch

    def watched(training):
        with waits:
            return run(training)

    def begun(*arguments):
        waits.part = "forward and backward"
        return forward(*arguments)

    def ended(agreed):
        waits.part = "end"
        return read(agreed)

    def loaded(*arguments):  # elsewhere in processes of its own
        before, waits.part = waits.part, "loader"
        made = batch(*arguments)
        waits.part = before
        return made

    monkeypatch.setattr(Reader, "batch", loaded)
    monkeypatch.setattr(Training, "run", watched)
    monkeypatch.setattr(Engine, "forward", begun)
    monkeypatch.setattr(Agreed, "read", ended)
    Quick(monkeypatch, configuration, tmp_path).train("optim.updates=3", setting, *STILL)
    assert ("end", "_local_scalar_dense") in waits.found, "what it would see"
    assert [name for part, name in waits.found if part == "forward and backward"] == []
