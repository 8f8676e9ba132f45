"""Held-out figures: sums by recording over ranks, means weighted by frames, the interval by resampled
recordings."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from stages.pretrain.model.objective import Objective
from stages.pretrain.run import metrics, validation
from stages.pretrain.run.validation import figures, validate
from stages.pretrain.run.world import World
from tests.stages.pretrain import toy

pytestmark = pytest.mark.usefixtures("one_thread")
ALONE = World(0, 1, 0, torch.device("cpu"))


@dataclass
class Heads:
    """What `figures` asks of a model."""

    codebooks: int
    objective: Objective = Objective(codes_weight=0.5, cqt_weight=3.0)


def table(
    frames: list[int],
    ce: list[list[float]],
    frequency: list[list[float]],
    accuracy: list[list[float]],
    cqt: list[list[float]] | None = None,
) -> np.ndarray:
    """Sums of each recording from its frames and its means."""
    means = [np.array(m, dtype=float) for m in (ce, frequency, accuracy, *([cqt] if cqt else []))]
    return np.concatenate([np.array(frames)[:, None], *(m * np.array(frames)[:, None] for m in means)], 1)


def test_means_are_weighted_by_the_frames_of_each_recording():
    sums = table(
        [1, 3],
        [[4.0, 2.0], [8.0, 2.0]],
        [[5.0, 3.0], [9.0, 5.0]],
        [[0.0, 1.0], [1.0, 0.0]],
        [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]],
    )
    found = figures(sums, Heads(2), 100, 0)
    assert found["masked_frames"] == 4
    assert (
        found["ce"] == [7.0, 2.0]
        and found["gain_over_unigram"] == [1.0, 2.5]
        and found["accuracy"] == [0.75, 0.25]
    )
    assert (found["cqt_error"], found["cqt_mean_error"], found["cqt_line_error"]) == (4.0, 5.0, 6.0)
    assert found["loss"] == 0.5 * 9.0 + 3.0 * 4.0


def test_a_constant_gain_has_an_interval_of_no_width_however_unequal_the_recordings():
    gains = [0.25, -1.5]
    ce = [[3.0, 2.0], [1.0, 5.0], [4.0, 4.0]]
    sums = table(
        [1, 10, 1000], ce, [[c + g for c, g in zip(row, gains, strict=True)] for row in ce], [[0.0, 0.0]] * 3
    )
    found = figures(sums, Heads(2), 500, 3)
    for name in ("gain_over_unigram_low", "gain_over_unigram", "gain_over_unigram_high"):
        assert found[name] == pytest.approx(gains, abs=1e-12)


def test_the_interval_is_that_of_resampled_recordings():
    """Two recordings of equal length, gains 0 and 1: a resampling's gain is 0, 0.5 or 1 with 1/4, 1/2 and
    1/4."""
    sums = table([5, 5], [[1.0], [1.0]], [[1.0], [2.0]], [[0.0], [0.0]])
    found = figures(sums, Heads(1), 2000, 0)
    assert (found["gain_over_unigram_low"], found["gain_over_unigram"], found["gain_over_unigram_high"]) == (
        [0.0],
        [0.5],
        [1.0],
    )


def test_the_interval_holds_95_percent():
    """40 recordings: 2.5 and 97.5 % of the mean of as many draws, against the normal approximation."""
    gain = np.random.default_rng(5).normal(size=(40, 1))
    sums = table([7] * 40, np.zeros((40, 1)), gain, np.zeros((40, 1)))
    found = figures(sums, Heads(1), 4000, 0)
    spread = 1.96 * gain.std() / 40**0.5
    assert found["gain_over_unigram_low"] == pytest.approx(gain.mean(0) - spread, abs=0.08 * spread)
    assert found["gain_over_unigram_high"] == pytest.approx(gain.mean(0) + spread, abs=0.08 * spread)


def test_the_interval_repeats_by_its_seed_and_narrows_with_nothing_else():
    sums = table([3, 5, 9], [[1.0], [2.0], [3.0]], [[1.1], [3.0], [3.2]], [[0.0]] * 3)
    draw = [figures(sums, Heads(1), 100, seed) for seed in (1, 1, 2, 3)]
    assert (
        draw[0] == draw[1]
        and len({(d["gain_over_unigram_low"][0], d["gain_over_unigram_high"][0]) for d in draw}) > 1
    )
    assert all(d["gain_over_unigram"] == draw[0]["gain_over_unigram"] for d in draw)


def test_without_codes_or_without_the_cqt_their_figures_are_left_out():
    only_cqt = figures(np.array([[2.0, 4.0, 6.0, 8.0]]), Heads(0), 100, 0)
    assert only_cqt == {
        "loss": 6.0,
        "masked_frames": 2,
        "cqt_error": 2.0,
        "cqt_mean_error": 3.0,
        "cqt_line_error": 4.0,
    }
    only_codes = figures(table([2], [[3.0]], [[4.0]], [[0.5]]), Heads(1), 100, 0)
    assert only_codes == {
        "loss": 1.5,
        "masked_frames": 2,
        "ce": [3.0],
        "accuracy": [0.5],
        "gain_over_unigram": [1.0],
        "gain_over_unigram_low": [1.0],
        "gain_over_unigram_high": [1.0],
    }


@pytest.fixture(scope="module")
def held_out():
    """A model, its baselines, and eight clips of three recordings."""
    model, whole = toy.model().eval(), toy.global_batch(0)
    whole.recordings = list("aabbbbcc")
    counter = metrics.Counter(toy.CODES, model.cqt_head.target)
    counter.add(whole)
    baselines = counter.baselines()
    return model, baselines, whole


def parts(whole, size: int):
    return [
        replace(toy.part(whole, slice(i, i + size)), recordings=whole.recordings[i : i + size])
        for i in range(0, toy.GLOBAL, size)
    ]


@torch.no_grad()
def found(held_out, size: int, world: World = ALONE, seed: int = 0) -> dict | None:
    model, baselines, whole = held_out
    return validate(model, parts(whole, size), baselines, world, 100, seed)


def test_figures_do_not_depend_on_micro_batches_and_count_every_recording_once(held_out):
    whole, halves, alone = found(held_out, 8), found(held_out, 4), found(held_out, 1)
    assert whole["recordings"] == 3 and whole["masked_frames"] == int(held_out[2].mask_BT.sum())
    ranks = whole.pop("effective_rank"), halves.pop("effective_rank"), alone.pop("effective_rank")
    for other in (halves, alone):
        assert other.keys() == whole.keys()
        assert all(other[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6) for name in whole)
    assert ranks[1] == pytest.approx(ranks[0], rel=1e-4), "2 micro-batches of 4: all clips are looked at"
    assert ranks[2] != pytest.approx(ranks[0], rel=1e-4), "8 micro-batches of 1: the first four clips"


def test_the_hidden_states_of_the_first_micro_batches_are_looked_at(held_out, monkeypatch):
    model, seen = held_out[0], []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda wave: seen.append(len(wave)) or hidden(wave))
    first = found(held_out, 1)["effective_rank"]
    assert seen == [1] * validation.RANK_BATCHES == [1] * 4
    together = validate_hidden(model, held_out[2].wave_BN[:4])
    assert first == pytest.approx(together, rel=1e-4) and all(1 < rank <= 32 for rank in first)


@torch.no_grad()
def validate_hidden(model, wave) -> list[float]:
    """The effective rank of each layer's frames by their singular values."""
    found = []
    for x_BTD in model.hidden(wave):
        x_SD = x_BTD.flatten(0, 1).double()
        share = torch.linalg.svdvals(x_SD - x_SD.mean(0)).square()
        share = share / share.sum()
        found.append(float(torch.exp(-(share * share.clamp_min(1e-30).log()).sum())))
    return found


def test_a_recording_whose_clips_lie_on_several_ranks_is_one_recording(held_out, monkeypatch):
    expected = found(held_out, 8)
    model, baselines, whole = held_out
    own: list[dict] = []
    monkeypatch.setattr(World, "gather", lambda self, value: own.append(value) or [value])
    for rows in (slice(0, 3), slice(3, 8)):
        with torch.no_grad():
            validate(
                model,
                [replace(toy.part(whole, rows), recordings=whole.recordings[rows])],
                baselines,
                ALONE,
                100,
                0,
            )
    monkeypatch.setattr(World, "gather", lambda self, value: own)
    both = validate(model, [], baselines, ALONE, 100, 0)
    assert both.pop("effective_rank") == [] and expected.pop("effective_rank")
    assert all(both[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6) for name in expected)


def test_without_held_out_recordings_there_are_no_figures(held_out):
    assert validate(held_out[0], [], held_out[1], ALONE, 100, 0) is None


def test_the_seed_and_the_number_of_resamplings_are_handed_on(held_out):
    assert found(held_out, 8, seed=1) == found(held_out, 8, seed=1)
    assert (
        found(held_out, 8, seed=1)["gain_over_unigram_low"]
        != found(held_out, 8, seed=2)["gain_over_unigram_low"]
    )


def test_only_masked_frames_count(held_out):
    model, baselines, whole = held_out
    frames = whole.mask_BT.shape[1]
    codes = {name: value.clone() for name, value in whole.codes.items()}
    for value in codes.values():
        value[:, :frames][~whole.mask_BT] = 0
    other = replace(whole, codes=codes)
    with torch.no_grad():
        assert validate(model, [other], baselines, ALONE, 100, 0) == validate(
            model, [whole], baselines, ALONE, 100, 0
        )


def test_sums_of_each_clip_are_those_of_its_masked_frames(held_out):
    """Frame by frame: cross entropy, hits and CQT errors of clip 3 against torch's own functions."""
    model, baselines, whole = held_out
    with torch.no_grad():
        sums = validation.clip_sums(model, whole, baselines)[3]
        logits, cqt_BTF, _ = model.predict(whole.wave_BN, whole.mask_BT)
    mask_T, count = whole.mask_BT[3], model.codebooks
    codes = [whole.codes[c.name][3, : len(mask_T), k] for c in toy.CODES for k in range(c.codebooks)]
    ce = [
        float(torch.nn.functional.cross_entropy(x[3][mask_T], c[mask_T], reduction="sum"))
        for x, c in zip(logits, codes, strict=True)
    ]
    hits = [int((x[3].argmax(1) == c)[mask_T].sum()) for x, c in zip(logits, codes, strict=True)]
    frequency = [-float(p[c][mask_T].sum()) for p, c in zip(baselines.log_probabilities, codes, strict=True)]
    target_TF = whole.cqt_BLF[3, : len(mask_T)]
    cqt = [
        (cqt_BTF[3] - target_TF).square().mean(1)[mask_T].sum(),
        (target_TF - baselines.cqt_mean_F).square().mean(1)[mask_T].sum(),
    ]
    assert sums.shape == (1 + 3 * count + 3,) and sums[0] == mask_T.sum()
    assert sums[1:-1].tolist() == pytest.approx([*ce, *frequency, *hits, *map(float, cqt)], rel=1e-5)
    line = metrics.cqt_errors(whole.cqt_BLF[:, : len(mask_T)], whole.mask_BT, baselines.cqt_mean_F)[1][3]
    assert float(sums[-1]) == pytest.approx(float(line[mask_T].sum()), rel=1e-5)


def test_without_the_column_or_the_head_there_are_no_sums_of_the_cqt(held_out):
    model, baselines, whole = held_out
    with torch.no_grad():
        assert (
            validation.clip_sums(model, replace(whole, cqt_BLF=None), baselines).shape[1]
            == 1 + 3 * model.codebooks
        )
        head, model.cqt_head = model.cqt_head, None
        try:
            assert validation.clip_sums(model, whole, baselines).shape[1] == 1 + 3 * model.codebooks
        finally:
            model.cqt_head = head


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_the_effective_rank_does_not_depend_on_the_size_of_the_values_and_is_one_when_all_are_equal(size):
    x = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)).double() * size
    x = torch.nn.functional.pad(x, (0, 1), value=1.0)
    assert validation.effective_rank(x.T @ x) == pytest.approx(4, rel=1e-2)
    same = torch.ones(10, 5).double()
    assert validation.effective_rank(same.T @ same) == 1.0
