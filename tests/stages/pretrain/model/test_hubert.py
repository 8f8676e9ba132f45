"""Equal to transformers' HubertModel, with the same weights, in both norm styles."""

import pytest
import torch
from transformers import HubertConfig, HubertModel

from stages.pretrain.model.config import Model
from stages.pretrain.model.hubert import from_hubert, hubert_config, newer, to_hubert
from tests.stages.pretrain.sizes import mert, small


def twin(net) -> HubertModel:
    """A HubertModel with the weights of `net`, strict."""
    theirs = HubertModel(HubertConfig(**hubert_config(net.model))).eval()
    names = {newer(name): name for name in theirs.state_dict()}
    theirs.load_state_dict(
        {names[name]: value for name, value in to_hubert(net.state_dict()).items()}, strict=True
    )
    return theirs


def compare(net, seconds: int) -> None:
    wave_BN = torch.randn(1, 24_000 * seconds, generator=torch.Generator().manual_seed(seconds)) * 0.1 + 0.02
    with torch.no_grad():
        hidden, last = net.encode(wave_BN)
        found = twin(net)(wave_BN, output_hidden_states=True)
    assert len(hidden) == len(found.hidden_states) == net.model.layers + 1
    for ours, theirs in zip((*hidden, last), (*found.hidden_states, found.last_hidden_state), strict=True):
        assert ours.shape == theirs.shape == (1, net.model.frames(wave_BN.shape[1]), net.model.width)
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("seconds", [1, 5, 30])
def test_every_hidden_state_equals(norm, seconds):
    net = mert(small(norm=norm)).eval()
    for parameter in net.parameters():  # biases of zero and norms of one would hide a swap
        parameter.data += 0.05 * torch.randn_like(parameter)
    compare(net, seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [Model(), Model(layers=24, width=1024, ffn=4096, heads=16, norm="pre")], ids=["95m", "330m"]
)
def test_every_hidden_state_equals_at_full_size(model):
    compare(mert(model).eval(), 1)
    compare(mert(model, seed=1).eval(), 30)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_masked_frames_and_gradients_equal(norm):
    net = mert(small(norm=norm))
    theirs = twin(net)
    theirs.config.apply_spec_augment = True
    wave_BN = torch.randn(2, 16_000) * 0.1
    mask_BT = torch.rand(2, 49) < 0.5
    direction_BTD = torch.randn(2, 49, 32)
    (net.encode(wave_BN, mask_BT)[1] * direction_BTD).sum().backward()
    (theirs(wave_BN, mask_time_indices=mask_BT).last_hidden_state * direction_BTD).sum().backward()
    gradients = {newer(name): p.grad for name, p in theirs.named_parameters()}
    encoder = {
        name: p.grad for name, p in net.named_parameters() if not name.startswith(("code_heads", "cqt_head"))
    }
    for name, gradient in to_hubert(encoder).items():
        # a key's bias has none but rounding
        assert (gradient - gradients[name]).norm() <= 1e-4 * gradients[name].norm() + 1e-4, name


def test_weights_come_back_bit_for_bit():
    net, other = mert(), mert(seed=1)
    given = from_hubert(twin(net).state_dict(), other.state_dict())
    other.load_state_dict(other.state_dict() | given, strict=True)
    assert all(
        torch.equal(value, other.state_dict()[name])
        for name, value in net.state_dict().items()
        if "head" not in name
    )


@pytest.mark.parametrize(
    "damage, says",
    [("missing", "is missing"), ("extra", "has no place in this model"), ("shape", "this model has")],
)
def test_import_is_strict(damage, says):
    net = mert()
    tensors = to_hubert(net.state_dict())
    name = "encoder.layers.1.final_layer_norm.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["encoder.layers.2.final_layer_norm.weight"] = tensors[name]
    else:
        tensors[name] = tensors[name][:-1]
    with pytest.raises(ValueError, match=says):
        from_hubert(tensors, net.state_dict())


@pytest.mark.parametrize(
    "choice, says",
    [
        ({"front_end": "mel"}, "front_end: mel"),
        ({"positions": "rotary"}, "positions: rotary"),
        ({"block": "conformer", "norm": "pre"}, "block: conformer"),
        ({"attention_bias": "alibi"}, "attention_bias: alibi"),
    ],
)
def test_what_hubert_cannot_express_is_refused_by_name(choice, says):
    with pytest.raises(ValueError, match=says):
        hubert_config(small(**choice))
