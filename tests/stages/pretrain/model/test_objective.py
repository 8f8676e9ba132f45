"""The objective against a direct, slow transcription of the recipe's formulas.

S masked frames, D width, E width of a code, F CQT bins.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from stages.pretrain.model.objective import Objective
from tests.stages.pretrain.sizes import COLUMN, SLOW, batch, mert, small

FACTS = ("ce_K", "correct_K", "trained_K", "cqt", "penalty", "frames")


def direct(net, inputs) -> dict:
    """Frame by frame, codebook by codebook: cosine similarity against every code, as the authors wrote it."""
    features = net.front_end(inputs["wave_BN"], torch.float32)
    penalty = features.pow(2).mean()
    x_BTD = net.encode(inputs["wave_BN"], inputs["mask_BT"])[1]
    places = [
        (b, t) for b, row in enumerate(inputs["mask_BT"].tolist()) for t, masked in enumerate(row) if masked
    ]
    errors, hits = [], []
    for column, head in zip(net.codes, net.code_heads, strict=True):
        for k in range(column.codebooks):
            error, hit = torch.zeros(()), 0
            width = head.table_KCE.shape[2]
            for b, t in places:
                x_E = (head.projection.weight @ x_BTD[b, t] + head.projection.bias)[
                    k * width : (k + 1) * width
                ]
                cosines = torch.stack(
                    [F.cosine_similarity(x_E, code_E, dim=0) for code_E in head.table_KCE[k]]
                )
                target = inputs["codes"][column.name][b, t * 320 // column.hop_samples, k]
                logits = cosines / net.objective.temperature
                error = error + torch.logsumexp(logits, 0) - logits[target]
                hit += int(logits.argmax() == target)
            errors.append(error)
            hits.append(hit)
    cqt = torch.zeros(())
    for b, t in places:
        predicted_F = net.cqt_head.weight @ x_BTD[b, t] + net.cqt_head.bias
        cqt = cqt + (predicted_F - inputs["cqt_BLF"][b, t]).pow(2).mean()
    o = net.objective
    loss = o.codes_weight * sum(errors) + len(places) * o.penalty_weight * penalty + o.cqt_weight * cqt
    return {
        "loss": loss,
        "ce_K": torch.stack(errors).detach(),
        "correct_K": hits,
        "cqt": cqt,
        "penalty": penalty,
        "frames": len(places),
    }


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_value_and_gradients_equal_the_direct_form(norm):
    net = mert(
        small(norm=norm),
        Objective(head_width=6, codes_weight=0.7, cqt_weight=1.3, penalty_weight=9.0),
        (COLUMN, SLOW),
    )
    inputs = batch(net, samples=8_000)
    ours, theirs = net(**inputs), direct(net, inputs)
    assert ours["frames"] == theirs["frames"]
    assert ours["correct_K"].tolist() == theirs["correct_K"]
    for name in ("loss", "ce_K", "cqt", "penalty"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=0)
    names, parameters = zip(*net.named_parameters(), strict=True)
    ours, theirs = (torch.autograd.grad(found["loss"], parameters) for found in (ours, theirs))
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-7, name


def test_the_sum_does_not_depend_on_how_clips_are_grouped():
    net = mert()
    inputs = batch(net, clips=3)
    # every clip has as many masked frames, as the loader sees to
    inputs["mask_BT"][1:] = inputs["mask_BT"][0]
    whole = net(**inputs)
    alone = [
        net(
            **{
                k: {n: c[i : i + 1] for n, c in v.items()} if k == "codes" else v[i : i + 1]
                for k, v in inputs.items()
            }
        )
        for i in range(3)
    ]
    torch.testing.assert_close(whole["loss"], sum(a["loss"] for a in alone), rtol=1e-5, atol=0)
    torch.testing.assert_close(whole["ce_K"], sum(a["ce_K"] for a in alone), rtol=1e-5, atol=0)


def test_codebook_sampling_trains_some_and_gives_the_others_gradients_of_zero():
    net = mert(objective=Objective(head_width=6, codebooks_per_update=2), codes=(COLUMN, SLOW))
    inputs = batch(net)
    every, some = net(**inputs), net(**inputs, codebooks=(0, 2))
    assert some["trained_K"].tolist() == [True, False, True, False, False]
    torch.testing.assert_close(some["ce_K"], every["ce_K"] * some["trained_K"])
    some["loss"].backward()
    table = net.code_heads[0].table_KCE.grad
    assert table[0].any() and table[2].any() and not table[1].any()
    assert all(p.grad is not None and not p.grad.any() for p in net.code_heads[1].parameters())


def test_draws_are_pure_and_spread():
    net = mert(
        small(layers=12, layer_drop=0.25), Objective(head_width=6, codebooks_per_update=2), (COLUMN, SLOW)
    )
    draws = [net.draw(7, update) for update in range(400)]
    assert (
        draws
        == [net.draw(7, update) for update in range(400)]
        != [net.draw(8, update) for update in range(400)]
    )
    dropped = 1 - sum(sum(keep) for keep, _ in draws) / (400 * 12)
    assert dropped == pytest.approx(0.25, abs=0.03)
    assert all(len(set(books)) == 2 for _, books in draws) and {
        k for _, books in draws for k in books
    } == set(range(5))
    assert mert().draw(7, 1) == ((True, True), (0, 1, 2))


def test_a_learned_temperature_has_a_gradient_and_starts_where_it_is_told():
    fixed, learned = mert(), mert(objective=Objective(head_width=6, learn_temperature=True))
    inputs = batch(fixed)
    found = learned(**inputs)
    torch.testing.assert_close(found["loss"], fixed(**inputs)["loss"])
    found["loss"].backward()
    assert learned.code_heads[0].log_scale_K.grad.abs().min() > 0


def test_log_targets_are_compared_as_logarithms():
    net = mert(objective=Objective(head_width=6, cqt_target="log"))
    inputs = batch(net)
    inputs["cqt_BLF"] *= 50
    plain = mert()
    expected = plain(**inputs | {"cqt_BLF": (inputs["cqt_BLF"] + 1e-3).log()})
    torch.testing.assert_close(net(**inputs)["cqt"], expected["cqt"])


@pytest.mark.parametrize("weight", ["codes_weight", "cqt_weight", "penalty_weight"])
def test_each_weight_counts(weight):
    inputs, objective = batch(mert()), Objective(head_width=6)
    plain = mert(objective=objective)(**inputs)
    heavier = mert(objective=dataclasses.replace(objective, **{weight: 3 * getattr(objective, weight)}))(
        **inputs
    )
    part = {
        "codes_weight": plain["ce_K"].sum(),
        "cqt_weight": plain["cqt"],
        "penalty_weight": 10 * plain["frames"] * plain["penalty"],
    }[weight]
    torch.testing.assert_close(heavier["loss"] - plain["loss"], 2 * part, rtol=1e-4, atol=1e-4)


def test_without_a_weight_there_is_no_cqt_head():
    net = mert(objective=Objective(head_width=6, cqt_weight=0))
    assert net.cqt_head is None
    assert net(**batch(net))["cqt"] == 0


def test_labels_too_short_or_missing_are_refused():
    net = mert()
    inputs = batch(net)
    with pytest.raises(ValueError, match="codes-a is '5 label frames'"):
        net(**inputs | {"codes": {"codes-a": inputs["codes"]["codes-a"][:, :5]}})
    with pytest.raises(ValueError, match="load that column"):
        net(**inputs | {"codes": {}})
    with pytest.raises(ValueError, match="load its column"):
        net(**inputs | {"cqt_BLF": None})


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"temperature": 0.0}, "0.01 to 10"),
        ({"codes_weight": 0.0, "cqt_weight": 0.0}, "nothing to learn"),
        ({"cqt_target": "db"}, "linear or log"),
        ({"codebooks_per_update": 0}, "1 or more"),
        ({"temperature": 0.0099}, "0.01 to 10"),
        ({"temperature": 10.1}, "0.01 to 10"),
        ({"head_width": 0}, "1 or more"),
        ({"cqt_start": "zero"}, "default, mean or fit"),
        ({"codes_weight": -0.1}, "Objective.codes_weight is -0.1: expected a number, 0 or more"),
        ({"cqt_weight": -0.1}, "Objective.cqt_weight is -0.1: expected a number, 0 or more"),
        ({"penalty_weight": -0.1}, "Objective.penalty_weight is -0.1: expected a number, 0 or more"),
    ],
)
def test_impossible_objectives_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Objective(**wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"temperature": 0.01},
        {"temperature": 10},
        {"codes_weight": 0},
        {"cqt_weight": 0},
        {"penalty_weight": 0},
        {"codes_weight": 0.5, "cqt_weight": 0},
        {"cqt_weight": 0.5, "codes_weight": 0},
        {"head_width": 1},
        {"codebooks_per_update": 1},
        {"cqt_start": "mean"},
        {"cqt_start": "fit"},
        {"cqt_target": "log"},
    ],
)
def test_the_limits_themselves_are_allowed(right):
    assert all(getattr(Objective(**right), name) == value for name, value in right.items())


def test_the_defaults_are_the_recipes():
    assert dataclasses.asdict(Objective()) == {
        "codes_weight": 1.0,
        "cqt_weight": 1.0,
        "visible_weight": 0.0,
        "penalty_weight": 10.0,
        "temperature": 0.1,
        "learn_temperature": False,
        "head_width": 64,
        "codebooks_per_update": None,
        "cqt_start": "default",
        "cqt_target": "linear",
        "musical": (),
        "musical_weight": 3.0,
    }


def test_more_codebooks_than_there_are_cannot_be_drawn():
    with pytest.raises(ValueError, match="there are 3 codebooks"):
        mert(objective=Objective(codebooks_per_update=4))


def test_an_objective_is_not_changed_once_made():
    with pytest.raises(AttributeError):
        Objective().cqt_weight = 0.0
