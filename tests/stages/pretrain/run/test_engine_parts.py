"""One update step by step at ZeRO stage 0, with plain PyTorch in DeepSpeed's place; settings, and what
DeepSpeed is told."""

import json
import math

import pytest
import torch
from torch import nn

from stages.pretrain.data.batch import Batch
from stages.pretrain.run import engine
from stages.pretrain.run.engine import Engine, deepspeed_config
from stages.pretrain.run.settings import EngineSettings, Optim
from stages.pretrain.run.world import World
from tests.stages.pretrain import toy, updating
from tests.stages.pretrain.runs import ALONE, Plain

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIM = Optim(updates=10, warmup_updates=2, lr=2e-3, global_batch=toy.GLOBAL, clip_norm=1.0)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(engine, "_initialize", Plain)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return lambda accumulation=2, precision="fp32", optim=OPTIM: Engine(
        toy.model(), EngineSettings(zero_stage=0, precision=precision), optim, ALONE, accumulation
    )


def halves(number: int = 0) -> list[Batch]:
    whole = toy.global_batch(number)
    return [toy.part(whole, slice(i, i + 4)) for i in (0, 4)]


def update(own: Engine, bad=lambda loss: False, lr: float = 1e-3, batches=None):
    frames = int(toy.global_batch(0).mask_BT.sum())
    return updating.update(own, batches or halves(), frames, lr, own.model.draw(0, 0), bad)


def weights(own: Engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in own.model.named_parameters()}


def changed(own: Engine, before: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, p in own.model.named_parameters() if not torch.equal(p, before[name])]


def test_a_micro_batch_gives_its_loss_with_a_graph_and_its_sums_in_float64(made):
    own = made()
    loss, terms = own.forward(halves()[0], *own.model.draw(0, 0))
    assert loss.requires_grad and float(loss.detach()) == float(terms["loss"])
    assert terms["loss"].shape == () and terms["ce_K"].shape == (4,)
    assert all(value.dtype == torch.float64 and not value.requires_grad for value in terms.values())
    assert int(terms["frames"]) == int(halves()[0].mask_BT.sum())


def test_no_weight_moves_before_the_step(made):
    own = made()
    before = weights(own)
    done = update(own, lambda loss: bool(changed(own, before)))
    assert not done.skipped and changed(own, before)
    assert own.steps == 1 and math.isfinite(done.grad_norm)


def test_what_the_judge_refuses_changes_no_weight_moment_or_count(made):
    own = made()
    update(own)
    before, moments = weights(own), {n: t.clone() for n, t in own.gathered().items()}
    done = update(own, lambda loss: True)
    assert (done.skipped, done.grad_norm, own.steps) == (True, math.inf, 1) and not changed(own, before)
    assert all(torch.equal(moments[n], t) for n, t in own.gathered().items())
    assert not update(own).skipped and changed(own, before), "the next update is one again"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_not_applied(made, bad):
    own = made()
    before = weights(own)
    handle = own.model.mask_vector.register_hook(lambda grad: torch.full_like(grad, bad))
    done = update(own)
    handle.remove()
    assert (done.skipped, done.grad_norm) == (True, math.inf) and not changed(own, before) and own.steps == 0


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_norm_is_that_before_clipping_and_the_step_is_that_after(made, clip):
    """Plain SGD's words: Adam sees the clipped gradient, which its first moment tells."""
    own = made(optim=Optim(updates=10, warmup_updates=2, lr=2e-3, global_batch=8, clip_norm=clip))
    done = update(own)
    moments = {n.partition(".")[2]: t for n, t in own.gathered().items() if n.startswith("exp_avg.")}
    applied = float(torch.stack([m.norm() for m in moments.values()]).norm()) / (1 - OPTIM.betas[0])
    assert applied == pytest.approx(min(clip, done.grad_norm), rel=1e-4) and done.grad_norm > 0.01


def test_the_gradient_is_that_of_the_mean_loss_however_it_is_accumulated(made):
    norms = []
    for accumulation, batches in ((2, halves()), (1, [toy.global_batch(0)])):
        norms.append(update(made(accumulation), batches=batches).grad_norm)
    model = toy.model()
    whole = toy.global_batch(0)
    keep, codebooks = model.draw(0, 0)
    model(whole.wave_BN, whole.mask_BT, whole.codes, whole.cqt_BLF, keep_layers=keep, codebooks=codebooks)[
        "loss"
    ].div(whole.mask_BT.sum()).backward()
    expected = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    assert norms == pytest.approx([expected, expected], rel=1e-4)


def test_the_rate_is_the_one_given(made):
    own = made()
    update(own, lr=0.125)
    assert {group["lr"] for group in own.adam.param_groups} == {0.125}


def test_the_scale_of_fp16_multiplies_the_loss_and_divides_the_gradient(made):
    plain, scaled = made(), made()
    scaled.loss_scale.enabled, scaled.loss_scale.value = True, 1024.0
    one, other = update(plain), update(scaled)
    assert (one.scale, other.scale) == (1.0, 1024.0) and other.grad_norm == pytest.approx(
        one.grad_norm, rel=1e-5
    )
    assert scaled.loss_scale.good == 1
    assert update(scaled, lambda loss: True).skipped
    assert (scaled.loss_scale.value, scaled.loss_scale.good) == (1024.0, 1), "judged: no overflow"
    handle = scaled.model.mask_vector.register_hook(lambda grad: grad * math.inf)
    done = update(scaled)
    handle.remove()
    assert (done.scale, scaled.loss_scale.value, scaled.loss_scale.good) == (1024.0, 512.0, 0)


def test_too_few_micro_batches_are_a_bug(made):
    with pytest.raises(AssertionError, match="too few micro-batches"):
        update(made(3))


def test_only_fp16_has_a_scale(made):
    assert [made(precision=p).loss_scale.enabled for p in ("fp32", "bf16", "fp16")] == [False, False, True]


def test_evaluating_is_without_dropout_and_gradients_in_the_runs_precision_and_ends_in_training(made):
    own = made(precision="bf16")
    own.model.train()
    with own.evaluating() as model:
        assert model is own.model and not model.training and not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert own.model.training and torch.is_grad_enabled()
    with made().evaluating():
        assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(KeyError), own.evaluating():
        raise KeyError
    assert own.model.training


def test_what_is_gathered_restores_the_engine(made):
    own, other = made(), made()
    update(own)
    held = own.gathered()
    moments = {f"{kind}.{name}" for kind in engine.MOMENTS for name, _ in own.model.named_parameters()}
    assert held.keys() == moments | own.model.state_dict().keys() and all(
        t.dtype == torch.float32 for t in held.values()
    )
    other.restore(held, 7)
    assert other.steps == 7 and all(torch.equal(held[n], t) for n, t in other.gathered().items())
    update(own)
    assert any(not torch.equal(held[n], t) for n, t in own.gathered().items()), (
        "a copy, not the weights themselves"
    )
    del held["mask_vector"]
    with pytest.raises(KeyError):
        made().restore(held, 1)


def test_other_ranks_gather_nothing(made, monkeypatch):
    own = made()
    own.world = World(1, 2, 1, torch.device("cpu"))
    assert own.gathered() == {}


@pytest.mark.parametrize("cuda", [False, True])
def test_what_deepspeed_is_told(cuda):
    own = deepspeed_config(
        EngineSettings(zero_stage=2, offload_optimizer=True), Optim(clip_norm=3.0), cuda, 5, overlap=cuda
    )
    assert own == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 5,
        "gradient_clipping": 3.0,
        "zero_optimization": {
            "stage": 2,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": cuda,
            "reduce_bucket_size": 50_000_000,
            "round_robin_gradients": False,
            "offload_optimizer": {"device": "cpu", "pin_memory": cuda},
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "prescale_gradients": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
    }
    assert (
        "offload_optimizer" not in deepspeed_config(EngineSettings(), Optim(), cuda, 1)["zero_optimization"]
    )
    assert deepspeed_config(EngineSettings(zero_stage=0), Optim(), cuda, 1)["gradient_clipping"] == 0.0


def test_a_users_json_adds_keys_and_may_repeat_ours(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps(
            {
                "fp16": {"enabled": False},
                "flops_profiler": {"enabled": True},
                "zero_optimization": {"sub_group_size": 7},
            }
        )
    )
    settings = EngineSettings(deepspeed=str(path))
    own, merged = (
        deepspeed_config(EngineSettings(), Optim(), False, 2),
        deepspeed_config(settings, Optim(), False, 2),
    )
    assert merged == own | {
        "flops_profiler": {"enabled": True},
        "zero_optimization": own["zero_optimization"] | {"sub_group_size": 7},
    }
    path.write_text(json.dumps({"zero_optimization": 3}))
    with pytest.raises(ValueError, match="zero_optimization is 3, but the run's configuration makes it"):
        deepspeed_config(settings, Optim(), False, 2)
    with pytest.raises(ValueError, match="engine.deepspeed is '.*none.json'"):
        deepspeed_config(EngineSettings(deepspeed=str(tmp_path / "none.json")), Optim(), False, 2)
