"""What the engine asks of DeepSpeed at each ZeRO stage: a small stand-in takes DeepSpeed's place, and a model
of two weights Mert's."""

import logging
import math

import pytest
import torch
from torch import nn

from stages.pretrain.data.batch import Batch
from stages.pretrain.run import engine
from stages.pretrain.run.engine import MOMENTS, Engine, deepspeed_config
from stages.pretrain.run.loss_scale import START
from stages.pretrain.run.optimiser import Adam
from stages.pretrain.run.settings import EngineSettings, Optim
from stages.pretrain.run.world import World
from tests.stages.pretrain import updating
from tests.stages.pretrain.runs import ALONE, Plain
from tests.stages.pretrain.zero import DeepSpeed, Tiny, Zero

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIM = Optim()
BATCH = Batch(
    torch.tensor([[1.0, 2.0]]), torch.ones(1, 1, dtype=torch.bool), {}, torch.zeros(1, 1, 1), keys=["clip"]
)
SPLIT = pytest.mark.parametrize("stage", [1, 2, 3])
EVERY = pytest.mark.parametrize("stage", [0, 1, 2, 3])


@pytest.fixture
def deepspeed(monkeypatch) -> DeepSpeed:
    return DeepSpeed(monkeypatch)


@pytest.fixture
def made(monkeypatch, deepspeed):
    monkeypatch.setattr(
        engine,
        "_initialize",
        lambda module, adam, settings, *others: (Zero if settings.zero_stage else Plain)(
            module, adam, settings, *others
        ),
    )
    return lambda stage, precision="fp32", world=ALONE, compile=False: Engine(
        Tiny(), EngineSettings(zero_stage=stage, precision=precision, compile=compile), OPTIM, world, 1
    )


def update(own: Engine, refused: bool = False):
    return updating.update(own, [BATCH], 1, 1e-3, (None, None), lambda loss: refused)


def same(found: list[tuple], expected: list[tuple]) -> bool:
    """Equal, where parameters are equal when they are one."""
    return [[id(v) if isinstance(v, nn.Parameter) else v for v in e] for e in found] == [
        [id(v) if isinstance(v, nn.Parameter) else v for v in e] for e in expected
    ]


@SPLIT
def test_zero_says_whether_the_update_was_applied_and_what_the_norm_was(made, stage):
    own = made(stage)
    done = update(own)
    assert (done.skipped, done.grad_norm) == (False, pytest.approx(math.sqrt(1 + 4 + 1)))
    done = update(own, refused=True)
    assert (done.skipped, done.grad_norm) == (True, math.inf)
    assert not update(own).skipped


@SPLIT
def test_zero_is_told_the_scale_of_fp16_before_each_update_and_none_otherwise(made, stage):
    own = made(stage, "fp16")
    own._deepspeed.told.clear()
    own.model.weight.register_hook(lambda grad: grad * math.inf)
    assert update(own).scale == START and update(own).scale == START / 2
    assert own._deepspeed.told == [START, START / 2]
    for precision in ("bf16", "fp32"):
        other = made(stage, precision)
        other._deepspeed.told.clear()
        update(other)
        assert other._deepspeed.told == []


@SPLIT
def test_an_update_begins_without_the_last_ones_gradients_where_zero_3_would_keep_them(made, stage):
    own = made(stage)
    zero = own._deepspeed.optimizer
    update(own)
    left = 0.0 if stage == 3 else 1.0
    assert zero.grad_partitions_flat_buffer.tolist() == [left] * 5
    with_grad, without = zero.fp32_partitioned_groups_flat
    assert with_grad.grad.tolist() == [left] * 3 and without.grad is None and with_grad.tolist() == [1.0] * 3


@EVERY
def test_an_update_trains_the_model_and_evaluating_does_not(made, stage):
    own = made(stage)
    own.model.eval()
    update(own)
    with own.evaluating() as model:
        model(BATCH.wave_BN)
    assert own.model.modes == [(True, False), (False, False)] and own.model.training


@EVERY
def test_evaluating_has_whole_weights(made, deepspeed, stage):
    own = made(stage)
    with own.evaluating():
        whole = list(deepspeed.open)
    assert [id(p) for p in whole] == ([id(p) for p in own.model.parameters()] if stage == 3 else [])
    assert deepspeed.open == [] and [name for name, *_ in deepspeed.did] == (
        ["gather", "part"] if stage == 3 else []
    )


@SPLIT
def test_gathered_is_zeros_fp32_weights_and_moments_and_the_models_buffers(made, deepspeed, stage):
    own = made(stage)
    found = {name: value.tolist() for name, value in own.gathered().items()}
    assert found == {
        "weight": [103, 104],
        "exp_avg.weight": [210, 211],
        "exp_avg_sq.weight": [213, 214],
        "bias": 100.5,
        "exp_avg.bias": 207.5,
        "exp_avg_sq.bias": 210.5,
        "count": [7],
    }


@SPLIT
def test_every_rank_takes_part_in_gathering(made, deepspeed, stage):
    """What DeepSpeed gathers, all ranks gather together: one that does not would leave the others waiting."""
    own = made(stage, world=World(1, 2, 1, torch.device("cpu")))
    assert own.gathered() == {}
    both = [own.model.weight, own.model.bias]
    assert same(deepspeed.did, [(call, p) for p in both for call in ("get", "get exp_avg", "get exp_avg_sq")])


TENSORS = {
    "weight": [1.0, 2.0],
    "bias": 3.0,
    "exp_avg.weight": [4.0, 5.0],
    "exp_avg.bias": 6.0,
    "exp_avg_sq.weight": [7.0, 8.0],
    "exp_avg_sq.bias": 9.0,
}


@SPLIT
def test_restoring_sets_the_weights_of_the_model_and_those_and_the_moments_of_zero(made, deepspeed, stage):
    own = made(stage)
    own.restore({name: torch.tensor(value) for name, value in TENSORS.items()}, 5)
    expected = []
    for name, parameter in own.model.named_parameters():
        expected.append(("set", parameter, TENSORS[name]))
        if (
            stage == 3
        ):  # rank 0 hands its values to the others; they are there before the weights are split again
            expected += [("gather", 0, parameter), ("part", TENSORS[name])]
        expected += [(f"set {key}", parameter, TENSORS[f"{key}.{name}"]) for key in MOMENTS]
        assert parameter.tolist() == TENSORS[name]
    assert same(deepspeed.did, expected) and own.steps == 5
    assert all(float(state["step"]) == 5 for state in own.adam.state.values())


def test_restoring_without_zero_sets_adams_own_moments(made, deepspeed):
    own = made(0)
    own.restore({name: torch.tensor(value) for name, value in TENSORS.items()}, 5)
    assert {name: value.tolist() for name, value in own.gathered().items()} == TENSORS | {
        "count": [7.0]
    } and deepspeed.did == []


@EVERY
def test_adams_moments_exist_before_the_first_update(made, stage):
    own = made(stage)
    zero = own._deepspeed.optimizer
    flats = {0: lambda: list(own.model.parameters()), 3: lambda: zero.fp32_partitioned_groups_flat}.get(
        stage, lambda: zero.single_partition_of_fp32_groups
    )()
    assert [id(flat) for flat in own.adam.state] == [id(flat) for flat in flats]
    for flat, state in own.adam.state.items():
        assert state.keys() == {"step", *MOMENTS} and float(state["step"]) == 0
        assert all(state[key].shape == flat.shape and not state[key].any() for key in MOMENTS)
    if stage:
        assert own._deepspeed.told == ([[(4,)]] if stage < 3 else []), (
            "ZeRO 1 and 2 link to moments that exist, once"
        )


def test_moments_that_deepspeed_made_are_kept(made, monkeypatch):
    held = {"step": torch.tensor(2.0)}

    class Made(Zero):
        def __init__(self, module, adam, *others):
            super().__init__(module, adam, *others)
            adam.state[self.optimizer.single_partition_of_fp32_groups[0]] = held

    monkeypatch.setattr(engine, "_initialize", Made)
    own = Engine(Tiny(), EngineSettings(), OPTIM, ALONE, 1)
    assert next(iter(own.adam.state.values())) is held and own.steps == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_deepspeed_is_started_for_the_runs_device(deepspeed, monkeypatch, device):
    log = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(log, "level", logging.INFO)
    monkeypatch.setenv("DS_ACCELERATOR", "")
    monkeypatch.delenv("DS_ACCELERATOR")
    model, settings = Tiny(), EngineSettings(zero_stage=2)
    adam, world = Adam(model.named_parameters(), OPTIM), World(0, 1, 0, torch.device(device))
    assert engine._initialize(model, adam, settings, OPTIM, world, 3) == "the engine"
    ((_, told),) = deepspeed.did
    assert told.pop("model") is model and told.pop("optimizer") is adam
    assert told == {
        "config": deepspeed_config(settings, OPTIM, device == "cuda", 3),
        "dist_init_required": False,
    }
    assert engine.os.environ["DS_ACCELERATOR"] == device and log.level == logging.ERROR
    assert deepspeed.package.ops.__compatible_ops__ == {"deepspeed_shm_comm": device == "cuda"}
    monkeypatch.setenv("DS_ACCELERATOR", "the user's")
    engine._initialize(model, adam, settings, OPTIM, world, 3)
    assert engine.os.environ["DS_ACCELERATOR"] == "the user's"


@pytest.mark.parametrize(("precision", "cast"), [("fp32", False), ("bf16", True), ("fp16", True)])
def test_the_model_runs_under_autocast_in_all_precisions_but_fp32(made, precision, cast):
    own = made(1, precision)
    update(own)
    assert own.model.modes == [(True, cast)]


def test_compiling_needs_the_compiler_that_torch_would_call(made, monkeypatch):
    there: list[str] = []
    monkeypatch.setattr(engine.shutil, "which", lambda name: name if name in there else None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        ValueError, match=r"engine.compile is True: needs a C\+\+ compiler, and g\+\+ is not on PATH"
    ):
        made(1, compile=True)
    assert made(1).model.compiled == 0, "a run that does not compile needs none"
    there.append("g++")
    assert made(1, compile=True).model.compiled == 1
    monkeypatch.setenv("CXX", "clang++")
    with pytest.raises(ValueError, match=r"clang\+\+ is not on PATH"):
        made(1, compile=True)


def test_the_model_is_moved_to_the_ranks_device(made):
    own = made(0, world=World(0, 1, 0, torch.device("meta")))
    assert {t.device.type for t in own.model.state_dict().values()} == {"meta"}


def test_the_usual_settings():
    assert EngineSettings() == EngineSettings(8, "bf16", 1, False, False, None)
    assert EngineSettings().zero_stage == 1 and EngineSettings().micro_batch == 8


def test_sums_of_any_shape_come_back_as_they_went_even_empty_ones():
    own = {"none": torch.zeros(0), "one": torch.tensor(2.0), "four": torch.arange(4.0).view(2, 2)}
    agreed = ALONE.agree(own | {"no": False, "yes": True, "count": 16_777_217})
    sums = agreed.read()
    assert {name: value.tolist() for name, value in agreed.there.items()} == {
        name: value.tolist() for name, value in sums.items()
    }
    assert {name: value.tolist() for name, value in sums.items()} == {
        "none": [],
        "one": 2.0,
        "four": [[0, 1], [2, 3]],
        "no": 0.0,
        "yes": 1.0,
        "count": 16_777_217,
    }
    assert sums["none"].shape == (0,) and all(value.dtype == torch.float64 for value in sums.values())
