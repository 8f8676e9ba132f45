"""What a loss is compared with: frequencies, the mean of each bin, the line across the mask; held-out
figures."""

import math

import numpy as np
import pytest
import torch

from stages.pretrain.data.batch import Batch, CodeColumn
from stages.pretrain.run import metrics
from stages.pretrain.run.loss_guard import LossGuard
from stages.pretrain.run.settings import Guard
from stages.pretrain.run.validation import clip_sums, effective_rank, figures
from tests.stages.pretrain import toy


def batch(codes_BL: np.ndarray, recordings: list[str]) -> Batch:
    rows, frames = codes_BL.shape
    mask = torch.ones(rows, frames, dtype=torch.bool)
    return Batch(
        torch.zeros(rows, 320 * frames),
        mask,
        {"codes-a": torch.from_numpy(codes_BL)[..., None]},
        recordings=recordings,
        keys=recordings,
        positions=list(range(rows)),
    )


def counted(codes_BL: np.ndarray, recordings: list[str], size: int) -> metrics.Baselines:
    counter = metrics.Counter((CodeColumn("codes-a", 1, size),), None)
    counter.add(batch(codes_BL, recordings))
    return counter.baselines()


def test_frequencies_of_one_source_are_learned_and_none_is_impossible():
    rng = np.random.default_rng(0)
    probability = np.array([0.7, 0.2, 0.1, 0.0])
    baselines = counted(rng.choice(4, (8, 4000), p=probability), list("abcdefgh"), 4)
    found = baselines.log_probabilities[0].exp().numpy()
    assert (
        np.abs(found - probability).max() < 0.02
        and found[3] > 0
        and found.sum() == pytest.approx(1, abs=1e-6)
    )


def test_frequencies_that_do_not_carry_over_are_smoothed_to_uniform():
    """Recordings that share no code: on the next one, uniform is the best guess without context."""
    codes = np.repeat(np.arange(8)[:, None], 500, 1)
    assert counted(codes, list("abcdefgh"), 16).log_probabilities[0].exp().max() < 2 / 16


def test_the_gain_of_the_frequencies_themselves_is_zero():
    codes = np.random.default_rng(1).integers(0, 4, (4, 100))
    baselines = counted(codes, list("abcd"), 4)
    ce = metrics.code_frequency_ce(batch(codes, list("abcd")), (CodeColumn("codes-a", 1, 4),), baselines)
    assert ce.shape == (4, 100, 1) and float(ce.mean()) == pytest.approx(math.log(4), abs=0.05)


def test_sums_by_clip_are_the_objectives_sums():
    model = toy.model().eval()
    whole = toy.global_batch(0)
    counter = metrics.Counter(toy.CODES, model.cqt_head.target)
    whole.recordings = list("aabbccdd")
    counter.add(whole)
    baselines = counter.baselines()
    with torch.no_grad():
        terms = model(whole.wave_BN, whole.mask_BT, whole.codes, whole.cqt_BLF)
        sums = clip_sums(model, whole, baselines)
    k = model.codebooks
    assert sums.shape == (8, 1 + 3 * k + 3) and int(sums[:, 0].sum()) == int(terms["frames"])
    assert torch.allclose(sums[:, 1 : 1 + k].sum(0).float(), terms["ce_K"], rtol=1e-4)
    assert torch.allclose(sums[:, 1 + 2 * k : 1 + 3 * k].sum(0).float(), terms["correct_K"])
    assert float(sums[:, 1 + 3 * k].sum()) == pytest.approx(float(terms["cqt"]), rel=1e-4)
    further = metrics.further_sums(whole, toy.CODES, baselines, model.cqt_head.target)
    assert torch.allclose(sums[:, 1 + k : 1 + 2 * k].sum(0), further["frequency_ce_K"], rtol=1e-5)
    assert float(sums[:, -1].sum()) == pytest.approx(float(further["cqt_line"]), rel=1e-5)
    found = figures(sums.numpy(), model, 200, 0)
    assert (
        found["gain_over_unigram_low"][0]
        <= found["gain_over_unigram"][0]
        <= found["gain_over_unigram_high"][0]
        and found["gain_over_unigram_low"] != found["gain_over_unigram_high"]
    )


def test_errors_of_musical_targets_are_those_of_the_objective_and_part_of_the_held_out_loss():
    model = toy.model(musical=("harmony", "onsets")).eval()
    whole = toy.global_batch(0)
    counter = metrics.Counter(toy.CODES, model.cqt_head.target)
    whole.recordings = list("aabbccdd")
    counter.add(whole)
    with torch.no_grad():
        terms = model(whole.wave_BN, whole.mask_BT, whole.codes, whole.cqt_BLF)
        sums = clip_sums(model, whole, counter.baselines())
    assert torch.allclose(sums[:, -2:].sum(0).float(), terms["musical"], rtol=1e-4)
    found, frames = figures(sums.numpy(), model, 200, 0), int(terms["frames"])
    assert found["musical_error"] == pytest.approx((terms["musical"] / frames).tolist(), rel=1e-4)
    without = sum(found["ce"]) + found["cqt_error"]
    assert found["loss"] == pytest.approx(without + 3 * sum(found["musical_error"]), rel=1e-6)
    sums = terms | {"samples": 0, "frequency_ce_K": terms["ce_K"]}
    assert metrics.row(sums, frames)["musical_error"] == pytest.approx(found["musical_error"], rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_directions(rank):
    x = (
        torch.randn(20_000, rank, generator=torch.Generator().manual_seed(0)).double()
        @ torch.linalg.qr(torch.randn(8, 8).double())[0][:rank]
    )
    x = torch.nn.functional.pad(x + 5, (0, 1), value=1.0)
    assert effective_rank(x.T @ x) == pytest.approx(rank, rel=0.02)


def test_a_jump_is_skipped_only_after_enough_was_seen_and_many_in_a_row_are_trouble():
    judge = LossGuard(Guard(spike=2.0, window=3, in_a_row=2))
    for loss in (1.0, 5.0, 1.0):
        assert not judge.bad(loss) and not judge.note(loss, False, False)
    assert judge.bad(5.0) and judge.bad(float("nan")) and not judge.bad(4.0)
    assert not judge.note(5.0, True, False)
    assert not judge.note(1.0, True, True)  # fp16 found an overflow: no sign of trouble
    assert judge.note(float("inf"), True, False) and judge.skipped == 3
    again = LossGuard(Guard(spike=2.0, window=3, in_a_row=2), **judge.to_json())
    assert again.bad(5.0) and again.skipped == 3
