"""The whole model: precision, choices of configuration and their effect, counts, blame."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from stages import config
from stages.pretrain.data.batch import Batch, CodeColumn
from stages.pretrain.model.attention import attend, attention_bias
from stages.pretrain.model.config import Model
from stages.pretrain.model.mert import MaskedFrames
from stages.pretrain.model.objective import Objective
from tests.stages.pretrain.sizes import COLUMN, SLOW, batch, mert, small

CONFIGS = Path(__file__).resolve().parents[4] / "configs" / "pretrain"
ENCODEC = (CodeColumn("codes-e", 8, 1024),)
CHOICES = {
    "pre": {"norm": "pre"},
    "mel": {"front_end": "mel"},
    "cqt": {"front_end": "cqt"},
    "rotary": {"positions": "rotary"},
    "alibi": {"attention_bias": "alibi"},
    "unseen": {"attend_masked": False},
    "line": {"masked_input": "line"},
    "stack": {"stack": 2},
    "alibi-unseen": {
        "attention_bias": "alibi",
        "attend_masked": False,
        "norm": "pre",
        "attention_dropout": 0.1,
    },
    "conformer": {"block": "conformer", "norm": "pre"},
    "conformer-rotary": {"block": "conformer", "norm": "pre", "positions": "rotary"},
}


def sections(name: str) -> tuple[Model, Objective]:
    data = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return config.build(Model, data["model"], "model"), config.build(
        Objective, data["objective"], "objective"
    )


@pytest.mark.parametrize(
    "name, heads, encoder",
    [
        ("mert_95m", None, 94_371_712),
        ("mert_330m", None, 315_428_992),
        ("tiny", (0.8e6, 1.2e6), None),
        ("small", (6e6, 11e6), None),
    ],
)
def test_parameter_counts(name, heads, encoder):
    """The encoders as transformers counts them: 94.4M and 315.4M."""
    with torch.device("meta"):
        net = mert(*sections(name), ENCODEC, 336)
    parts = net.parts()
    assert sum(parts.values()) == sum(p.numel() for p in net.parameters())
    if encoder:
        assert sum(n for part, n in parts.items() if part not in ("code_heads", "cqt_head")) == encoder
    else:
        assert heads[0] <= sum(parts.values()) <= heads[1], parts


@pytest.mark.parametrize(
    "samples, conv, mel", [(120_000, 374, 375), (24_000, 74, 75), (122_880, 383, 384), (399, 0, 1)]
)
def test_frames_of_a_crop(samples, conv, mel):
    assert Model().frames(samples) == conv
    assert Model(front_end="mel").frames(samples) == Model(front_end="cqt").frames(samples) == mel
    if samples == 24_000:
        assert [len(s[0]) for s in mert().hidden(torch.zeros(1, samples))] == [conv] * 3
        assert [len(s[0]) for s in mert(small(front_end="mel")).hidden(torch.zeros(1, samples))] == [mel] * 3


@pytest.mark.parametrize(
    "model", [Model(), Model(front_end="mel"), Model(front_end="cqt"), Model(front_end="mel_cqt"), small()]
)
def test_shortest_crop_of_so_many_frames(model):
    for frames in (1, 2, 374):
        assert model.frames(model.samples(frames)) == frames == model.frames(model.samples(frames) - 1) + 1


@pytest.mark.parametrize("choice", CHOICES)
def test_choices_train(choice):
    net = mert(small(**CHOICES[choice]))
    inputs = batch(net)
    net(**inputs)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    assert net.hidden(inputs["wave_BN"])[-1].shape == (2, net.model.frames(16_000), 32)


def test_rotary_positions_depend_on_distance_alone():
    from stages.pretrain.model.attention import rotate

    query, key = torch.randn(2, 8).unbind()
    score_TT = rotate(query.expand(1, 1, 20, 8))[0, 0] @ rotate(key.expand(1, 1, 20, 8))[0, 0].T
    torch.testing.assert_close(score_TT[3:, 1:-2], score_TT[2:-1, :-3], rtol=1e-4, atol=1e-5)
    assert (score_TT[0] - score_TT[0, 0]).abs().max() > 0.1


def test_a_bias_is_added_to_the_scores_and_falls_with_distance():
    """Against the formula written out: one softmax for each head and frame."""
    heads, frames, width = 4, 9, 6
    query, key, value = torch.randn(
        3, 2, heads, frames, width, generator=torch.Generator().manual_seed(3)
    ).unbind()
    bias = attention_bias(torch.zeros(2, frames, 1), heads, True, None)
    for dropout in (0.0, 1e-9):  # both ways of a CPU
        found = attend(query, key, value, dropout, bias)
        for h in range(heads):
            for t in range(frames):
                far = torch.tensor([float(abs(t - s)) for s in range(frames)])
                share = (
                    key[1, h] @ query[1, h, t] / width**0.5 - far * 2.0 ** (-8 * (h + 1) / heads)
                ).softmax(0)
                torch.testing.assert_close(found[1, h, t], share @ value[1, h], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alibi", [False, True])
def test_masked_frames_are_not_attended_to(alibi, dtype):
    """As if the clip had only the others; a clip that is all mask stays finite."""
    mask = torch.tensor([[False, True, True, False, True], [True] * 5])
    query, key, value = (
        torch.randn(3, 2, 2, 5, 4, generator=torch.Generator().manual_seed(4)).to(dtype).unbind()
    )
    bias = attention_bias(torch.zeros(2, 5, 1, dtype=dtype), 2, alibi, mask)
    found, other = attend(query, key, value, 0.0, bias), value.clone()
    other[0, :, mask[0]] = 100.0
    assert torch.equal(attend(query, key, other, 0.0, bias)[0], found[0]) and found.isfinite().all()
    assert not torch.equal(attend(query, key, other, 0.0)[0], attend(query, key, value, 0.0)[0])


@pytest.mark.parametrize("unseen", [False, True])
def test_what_masked_frames_say_to_others(unseen):
    """With attend_masked: false the mask vector changes only the frames it stands in, where there are no
    convolutional positions."""
    net = mert(small(norm="pre", positions="rotary", attend_masked=not unseen)).eval()
    inputs = batch(net)
    before = net.predict(inputs["wave_BN"], inputs["mask_BT"])[1]
    with torch.no_grad():
        net.mask_vector.mul_(-2)
    changed = (net.predict(inputs["wave_BN"], inputs["mask_BT"])[1] != before).any(2)
    assert changed[inputs["mask_BT"]].all() and bool(changed[~inputs["mask_BT"]].any()) != unseen


@pytest.mark.parametrize(
    "model", [small(), small(norm="pre"), small(front_end="mel"), small(front_end="cqt")]
)
@pytest.mark.parametrize("way", ["bf16 weights", "fp16 weights", "autocast"])
def test_low_precision_stays_near_fp32(model, way):
    """Weights cast, or fp32 weights under autocast: the loss and what it is made of are fp32 and near the
    fp32 run's."""
    net = mert(model)
    inputs = batch(net)
    exact = net(**inputs)
    if way != "autocast":
        net.to(torch.bfloat16 if way == "bf16 weights" else torch.float16)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        found = net(**inputs)
    for name in ("loss", "ce_K", "cqt", "penalty"):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], exact[name], rtol=0.02, atol=1e-4)
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    "model", [small(), small(norm="pre"), small(front_end="cqt", masked_input="line", attention_bias="alibi")]
)
@pytest.mark.parametrize("dtype, scale, far", [(torch.bfloat16, 1.0, 0.02), (torch.float16, 2.0**12, 0.003)])
def test_gradients_under_autocast_stay_near_fp32(model, dtype, scale, far):
    """As the engine runs it: fp32 weights, the loss over its masked frames, scaled in fp16. bf16 keeps 8
    bits, fp16 11."""
    net, found = mert(model), []
    inputs = batch(net)
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", dtype, enabled=enabled):
            terms = net(**inputs)
        (terms["loss"] / terms["frames"] * (scale if enabled else 1.0)).backward()
        found.append({name: p.grad / (scale if enabled else 1.0) for name, p in net.named_parameters()})
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found[1].values())
    exact, low = (torch.cat([value.flatten() for value in part.values()]) for part in found)
    assert (low - exact).norm() <= far * exact.norm()


def test_islands_are_fp32_under_bf16():
    """What bf16 would round away (8 bits) survives: predictions' errors, the penalty and GroupNorm's
    statistics."""
    net = mert().to(torch.bfloat16)
    inputs = batch(net)
    steps = []
    for shift in (0.0, 1e-3):  # far below bf16's step at 1
        moved = net(**inputs | {"cqt_BLF": inputs["cqt_BLF"] + 1 + shift})
        steps.append(moved["cqt"].item())
    assert steps[0] != steps[1]
    logits, cqt_BTF, _ = net.predict(inputs["wave_BN"], inputs["mask_BT"])
    assert all(x.dtype == torch.float32 for x in (*logits, cqt_BTF))
    assert (logits[0].bfloat16().float() != logits[0]).float().mean() > 0.5
    weight_BDW, bias_BD = net.front_end.first.fold_group_norm(inputs["wave_BN"])
    exact_BDW, exact_BD = net.float().front_end.first.fold_group_norm(inputs["wave_BN"])
    torch.testing.assert_close(weight_BDW, exact_BDW)
    torch.testing.assert_close(bias_BD, exact_BD)


@pytest.mark.parametrize("kind", ["silence", "constant", "full scale", "quiet", "click"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_every_level_and_loss_scale(kind, dtype):
    net = mert().to(dtype)
    inputs = batch(net)
    wave = inputs["wave_BN"]
    inputs["wave_BN"] = {
        "silence": wave * 0,
        "constant": wave * 0 + 1,
        "full scale": wave.sign(),
        "quiet": wave * 1e-6,
        "click": torch.eye(*wave.shape),
    }[kind]
    found = net(**inputs)
    assert found["loss"].isfinite()
    # An engine divides by the masked frames before it scales.
    (found["loss"] / found["frames"] * 2.0**16).backward()
    # fp16's own range ends at 65,504: its engine skips such steps and lowers the scale
    if dtype != torch.float16:
        assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_sample_with_nan_is_blamed_by_its_key():
    net = mert(codes=(COLUMN, SLOW)).train()
    inputs = batch(net, clips=5)
    inputs["wave_BN"][1, 77] = float("nan")
    inputs["cqt_BLF"][2, 3, 1] = float("inf")
    inputs["codes"]["codes-b"][4, 0, 0] = SLOW.size
    assert net.non_finite_keys(Batch(**inputs, keys=["a", "b", "c", "d", "e"])) == ["b", "c", "e"]
    assert net.training


def test_gradient_scale_reaches_the_front_end_only():
    whole, tenth = mert(), mert(small(gradient_scale=0.1))
    inputs = batch(whole)
    whole(**inputs)["loss"].backward()
    tenth(**inputs)["loss"].backward()
    torch.testing.assert_close(tenth.front_end.first.weight.grad, 0.1 * whole.front_end.first.weight.grad)
    torch.testing.assert_close(tenth.input_projection.weight.grad, whole.input_projection.weight.grad)


def test_a_dropped_layer_does_nothing_and_gets_gradients_of_zero():
    net = mert()
    inputs = batch(net)
    found = net(**inputs, keep_layers=(True, False))
    found["loss"].backward()
    assert all(not p.grad.any() for p in net.encoder.layers[1].parameters())
    shallow = mert(small(layers=1))
    shallow.load_state_dict({n: v for n, v in net.state_dict().items() if "layers.1." not in n})
    torch.testing.assert_close(found["loss"], shallow(**inputs)["loss"])


def test_activation_checkpointing_changes_nothing_but_memory():
    dropout = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    found = []
    for checkpointing in (False, True):
        net = mert(small(activation_checkpointing=checkpointing, **dropout))
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x
        ):
            torch.manual_seed(5)
            loss = net(**batch(net))["loss"]
        loss.backward()
        found.append((loss.item(), net.encoder.layers[0].attention.qkv.weight.grad, sum(kept)))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[1][2] < 0.8 * found[0][2]


@pytest.mark.parametrize(
    "share", ["input_dropout", "hidden_dropout", "attention_dropout", "activation_dropout"]
)
def test_each_dropout_acts_while_training_only(share):
    net = mert(small(**{share: 0.3}))
    wave_BN = batch(net)["wave_BN"]
    assert not torch.equal(net.hidden(wave_BN)[-1], net.hidden(wave_BN)[-1])
    net.eval()
    assert torch.equal(net.hidden(wave_BN)[-1], mert().eval().hidden(wave_BN)[-1])


def test_attention_relaxation_is_accepted_and_changes_nothing():
    plain, relaxed = mert(), mert(small(attention_relax=32.0))
    inputs = batch(plain)
    assert torch.equal(plain(**inputs)["loss"], relaxed(**inputs)["loss"])


def test_no_clip_depends_on_its_neighbours():
    for choice in ({}, *CHOICES.values()):
        net = mert(small(**choice)).eval()
        wave_BN = batch(net, clips=3)["wave_BN"]
        torch.testing.assert_close(
            net.hidden(wave_BN)[-1][1:2], net.hidden(wave_BN[1:2])[-1], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"heads": 7}, "Model.heads is 7: expected a divisor"),
        ({"norm": "middle"}, "post or pre"),
        ({"layer_drop": 1.0}, "below 1"),
        ({"block": "conformer"}, "expected pre"),
        (
            {"block": "conformer", "norm": "pre", "conformer_kernel": 30},
            "Model.conformer_kernel is 30: expected an odd",
        ),
        ({"position_groups": 7}, "Model.position_groups is 7: expected a divisor of width 768"),
        ({"positions": "rotary", "heads": 256}, "even width"),
        ({"attention_relax": 0.5}, "1 or more"),
    ],
)
def test_impossible_models_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Model(**wrong)


def test_convolutions_must_keep_the_hop():
    with pytest.raises(ValueError, match="product must be 320"):
        config.build(Model, {"conv": {"strides": [5, 2, 2, 2, 2, 2, 1]}}, "model")


@pytest.mark.parametrize("stack", [2, 3])
@pytest.mark.parametrize("front_end", ["conv", "mel"])
def test_stacked_frames_are_joined_before_the_projection(stack, front_end):
    net = mert(small(front_end=front_end, stack=stack)).eval()
    wave_BN = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(1)) * 0.1
    features_BTC = net.front_end(wave_BN, torch.float32)
    frames = features_BTC.shape[1] // stack
    joined_BTC = torch.stack(
        [features_BTC[:, t * stack : (t + 1) * stack].flatten(1) for t in range(frames)], 1
    )
    expected_BTD = net.input_projection(net.input_norm(joined_BTC))
    expected_BTD = expected_BTD + net.encoder.positions(expected_BTD)
    first_BTD = net.hidden(wave_BN)[0]
    assert frames == net.model.frames(24_000) == first_BTD.shape[1]
    torch.testing.assert_close(first_BTD, net.encoder.norm(expected_BTD))
    for count in (1, 2, 7):
        samples = net.model.samples(count)
        assert net.model.frames(samples) == count == net.model.frames(samples - 1) + 1


def test_labels_of_stacked_frames():
    """The middle codes, the later of two; the mean of the CQT; an incomplete frame at the end has none."""
    codes_BLK = torch.arange(14).view(1, 7, 2)
    one = Batch(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool), {"a": codes_BLK}, codes_BLK.float())
    assert one.stacked(1) is one
    assert one.stacked(3).codes["a"][0, :, 0].tolist() == [2, 8]
    assert one.stacked(3).cqt_BLF[0, :, 0].tolist() == [2, 8]
    assert one.stacked(2).codes["a"][0, :, 0].tolist() == [2, 6, 10]
    assert one.stacked(2).cqt_BLF[0, :, 0].tolist() == [1, 5, 9]


def test_visible_frames_cost_their_mean_too():
    objective = Objective(head_width=6, codes_weight=0.7, cqt_weight=2.0)
    plain = mert(objective=objective).eval()
    both = mert(objective=replace(objective, visible_weight=0.5)).eval()
    inputs = batch(plain)
    own, found = plain(**inputs), both(**inputs)
    # the same hidden states, whose visible frames are judged in place of the masked ones
    logits, cqt_BTF, _ = plain.predict(inputs["wave_BN"], inputs["mask_BT"])
    visible = ~inputs["mask_BT"]
    codes_BTK = inputs["codes"][COLUMN.name][:, : visible.shape[1]]
    errors = [
        F.cross_entropy(logits[k][visible], codes_BTK[..., k][visible], reduction="sum") for k in range(3)
    ]
    cqt = (cqt_BTF[visible] - inputs["cqt_BLF"][:, : visible.shape[1]][visible]).square().mean(1).sum()
    mean = (0.7 * sum(errors) + 2.0 * cqt) / visible.sum()
    torch.testing.assert_close(found["loss"], own["loss"] + 0.5 * own["frames"] * mean, rtol=1e-4, atol=1e-3)
    for name in ("ce_K", "correct_K", "cqt", "frames"):  # what is told is of masked frames alone
        torch.testing.assert_close(found[name], own[name])


def test_masked_frames_may_be_given_and_change_nothing():
    """As the loader does, which knows them: a device would have to be waited for."""
    net = mert(objective=Objective(head_width=6, visible_weight=0.5)).eval()
    inputs = batch(net)
    count = int(inputs["mask_BT"].sum(1).min())
    masked_BM = torch.stack([row.nonzero()[:, 0][:count] for row in inputs["mask_BT"]])
    inputs["mask_BT"] = torch.zeros_like(inputs["mask_BT"]).scatter(1, masked_BM, True)
    found, given = net(**inputs), net(**inputs, masked_BM=masked_BM)
    assert found.keys() == given.keys() and all(found[name].equal(given[name]) for name in found)
    frames = MaskedFrames.of(inputs["mask_BT"], masked_BM)
    shown = frames.visible(inputs["mask_BT"])
    assert [t.tolist() for t in (shown.clip_S, shown.frame_S)] == [
        t.tolist() for t in (~inputs["mask_BT"]).nonzero(as_tuple=True)
    ]
