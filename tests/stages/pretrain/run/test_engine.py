"""DeepSpeed's updates against plain PyTorch's, at every ZeRO stage; what is gathered and restored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.pretrain.run.engine import Engine, deepspeed_config
from stages.pretrain.run.optimiser import Adam
from stages.pretrain.run.settings import EngineSettings, Optim
from stages.pretrain.run.world import World, joined
from tests import ranks
from tests.stages.pretrain import toy
from tests.stages.pretrain.updating import update

OPTIM = Optim(updates=10, warmup_updates=2, lr=2e-3, global_batch=toy.GLOBAL, clip_norm=1.0)
OPTIMS = {"fp32": replace(OPTIM, cqt_head_lr_scale=0.5), "bf16": OPTIM}  # two groups of parameters, and one
UPDATES = 5
COMBINATIONS = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]


def updates(
    engine: Engine, world: World, accumulation: int, count: range, bad=lambda loss: False
) -> list[tuple]:
    found = []
    for number in count:
        batch = toy.global_batch(number)
        size = toy.GLOBAL // (world.size * accumulation)
        firsts = [(world.rank * accumulation + i) * size for i in range(accumulation)]
        parts = [toy.part(batch, slice(first, first + size)) for first in firsts]
        frames, draw = int(batch.mask_BT.sum()), engine.model.draw(1, number)
        done = update(engine, parts, frames, OPTIM.lr_at(number), draw, bad)
        found.append((float(done.sums["loss"]), done.grad_norm, done.skipped))
    return found


def on_ranks(folder: Path) -> None:
    """Two ranks, two micro-batches each: every stage and precision; the middle update of a second round is
    skipped."""
    with joined(60) as world:
        results = {}
        for stage, precision in COMBINATIONS:
            engine = Engine(
                toy.model(layer_drop=0.3),
                EngineSettings(zero_stage=stage, precision=precision),
                OPTIMS[precision],
                world,
                2,
            )
            rows = updates(engine, world, 2, range(UPDATES))
            gathered, steps = engine.gathered(), engine.steps
            shared = [gathered]
            torch.distributed.broadcast_object_list(shared)
            skipped = updates(engine, world, 2, range(UPDATES, UPDATES + 1), lambda loss: True)
            after_skip = engine.gathered()
            further = updates(engine, world, 2, range(UPDATES, UPDATES + 2))
            engine.restore(shared[0], steps)
            again = updates(engine, world, 2, range(UPDATES, UPDATES + 2))
            results[f"{stage} {precision}"] = (rows, gathered, steps, skipped, after_skip, further, again)
        for stage in (1, 2, 3):
            settings = EngineSettings(zero_stage=stage, precision="fp32", offload_optimizer=True)
            engine = Engine(toy.model(layer_drop=0.3), settings, OPTIMS["fp32"], world, 2)
            results[f"{stage} offloaded"] = (updates(engine, world, 2, range(UPDATES)), engine.gathered())
        if world.is_rank_0:
            torch.save(results, folder / "results.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("engine")
    ranks.run("tests.stages.pretrain.run.test_engine:on_ranks", folder, 2)
    return torch.load(folder / "results.pt")


def plain(precision: str) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """The same updates by one process of plain PyTorch, on whole global batches."""
    model = toy.model(layer_drop=0.3)
    adam, rows = Adam(model.named_parameters(), OPTIMS[precision]), []
    for number in range(UPDATES):
        batch = toy.global_batch(number)
        keep, codebooks = model.draw(1, number)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(
                batch.wave_BN,
                batch.mask_BT,
                batch.codes,
                batch.cqt_BLF,
                keep_layers=keep,
                codebooks=codebooks,
            )["loss"]
        (loss / batch.mask_BT.sum()).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
        adam.set_lr(OPTIM.lr_at(number))
        adam.step()
        adam.zero_grad()
        rows.append((float(loss), float(norm)))
    return rows, dict(model.named_parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_updates_equal_plain_pytorch(results, stage, precision):
    rows, gathered, steps, *_ = results[f"{stage} {precision}"]
    expected, weights = plain(precision)
    # bf16 rounds each micro-batch's products: sums of other batches differ by 2**-8
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for (loss, norm, skipped), (loss_expected, norm_expected) in zip(rows, expected, strict=True):
        assert loss == pytest.approx(loss_expected, rel=tolerance) and norm == pytest.approx(
            norm_expected, rel=tolerance
        )
        assert not skipped
    assert steps == UPDATES
    moved = max(
        float(w.detach().sub(toy.model(layer_drop=0.3).get_parameter(n)).abs().max())
        for n, w in weights.items()
    )
    for name, weight in weights.items():
        assert torch.allclose(
            gathered[name], weight.detach(), rtol=0, atol=1e-5 if precision == "fp32" else 0.5 * moved
        ), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_the_optimiser_changes_nothing_but_rounding(results, stage):
    """Stage 3 adds the squares of the offloaded gradients in another order."""
    rows, gathered = results[f"{stage} offloaded"]
    rows_expected, expected = results[f"{stage} fp32"][:2]
    assert [row[:2] for row in rows] == [pytest.approx(row[:2], rel=1e-5) for row in rows_expected]
    assert gathered.keys() == expected.keys() and all(
        torch.allclose(gathered[n], expected[n], rtol=0, atol=1e-5) for n in expected
    )


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_skipped_update_changes_nothing_and_restoring_repeats_bit_for_bit(results, combination):
    _, gathered, _, skipped, after_skip, further, again = results[f"{combination[0]} {combination[1]}"]
    assert skipped[0][2] and skipped[0][1] == float("inf")
    assert gathered.keys() == after_skip.keys() and all(
        torch.equal(gathered[n], after_skip[n]) for n in gathered
    )
    assert further == again and not further[0][2]


def test_stages_hold_the_same_state(results):
    reference = results["0 fp32"][1]
    for stage in (1, 2, 3):
        gathered = results[f"{stage} fp32"][1]
        assert gathered.keys() == reference.keys()
        assert all(torch.allclose(gathered[n], reference[n], rtol=0, atol=1e-5) for n in reference)


def test_a_users_deepspeed_json_is_merged_and_conflicts_are_refused(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps({"zero_optimization": {"reduce_bucket_size": 1000}, "gradient_clipping": 10.0})
    )
    settings = EngineSettings(deepspeed=str(path))
    merged = deepspeed_config(settings, Optim(), False, 2)
    assert (
        merged["zero_optimization"]["reduce_bucket_size"] == 1000
        and merged["zero_optimization"]["stage"] == 1
    )
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(
        ValueError, match=r"ds\.json: zero_optimization\.stage is 3, but the run's configuration makes it 1"
    ):
        deepspeed_config(settings, Optim(), False, 2)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"engine\.deepspeed is '.*ds\.json'"):
        deepspeed_config(settings, Optim(), False, 2)


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ValueError,
        match="engine.compile is True: needs a C\\+\\+ compiler, and no-such-compiler is not on PATH",
    ):
        Engine(toy.model(), EngineSettings(compile=True), OPTIM, World(0, 1, 0, torch.device("cpu")), 1)
