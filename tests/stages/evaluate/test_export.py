"""Export: a RUN becomes a folder that transformers loads, and that gives the same hidden states."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, HubertModel

from pipeline.cli import main
from stages.evaluate.run import open_backbone, open_run
from tests.stages.evaluate.conftest import write_run


@pytest.fixture(params=["post", "pre"])
def exported(tmp_path, request):
    run, net = write_run(tmp_path / "run", norm=request.param)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out", net


def test_transformers_loads_it_strict_and_agrees(exported):
    folder, net = exported
    wave_BN = torch.randn(2, 24_000) * 0.1
    for loader in (HubertModel, AutoModel):
        theirs, about = loader.from_pretrained(folder, output_loading_info=True)
        assert not any(about[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(theirs) is HubertModel
        with torch.no_grad():
            found = theirs.eval()(wave_BN, output_hidden_states=True)
            hidden, last = net.encode(wave_BN)
        for ours, other in zip((*hidden, last), (*found.hidden_states, found.last_hidden_state), strict=True):
            assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


def test_names_are_those_of_the_published_models(exported):
    names = set(load_file(exported[0] / "model.safetensors"))
    assert {
        "masked_spec_embed",
        "encoder.pos_conv_embed.conv.weight_g",
        "encoder.pos_conv_embed.conv.weight_v",
        "feature_extractor.conv_layers.0.layer_norm.weight",
        "encoder.layers.1.feed_forward.output_dense.bias",
    } <= names
    assert not any("head" in name for name in names)
    config = json.loads((exported[0] / "config.json").read_text())
    assert (config["sample_rate"], config["feature_extractor_cqt"], config["deepnorm"]) == (
        24_000,
        False,
        False,
    )
    assert config["do_stable_layer_norm"] == (exported[1].model.norm == "pre")


def test_the_preprocessor_leaves_the_wave_alone(exported):
    prepare = AutoFeatureExtractor.from_pretrained(exported[0])
    wave = torch.linspace(-1, 1, 500).numpy()
    assert prepare.sampling_rate == 24_000 and not prepare.do_normalize
    assert (prepare(wave, sampling_rate=24_000, return_tensors="np").input_values[0] == wave).all()


def test_the_model_card_holds_recipe_data_and_curve(exported):
    text = (exported[0] / "README.md").read_text()
    for expected in (
        "# attempt",
        "u00000002",
        "1.50 hours",
        "f00d",
        "codes-a",
        "3 × 20 codes",
        "| 1 | 49.0000 |  |",
        "| 40 | 10.0000 | 11.5000 |",
        "rate: 0.001",
        "norm: " + exported[1].model.norm,
    ):
        assert expected in text


def test_an_exported_folder_is_read_back(exported):
    again = open_backbone(exported[0])
    assert all(
        torch.equal(value, exported[1].state_dict()[name]) for name, value in again.state_dict().items()
    )


@pytest.mark.parametrize(
    "choices, says",
    [
        ({"front_end": "mel"}, "front_end: mel"),
        ({"positions": "rotary"}, "positions: rotary"),
        ({"block": "conformer", "norm": "pre"}, "block: conformer"),
        ({"attention_bias": "alibi"}, "attention_bias: alibi"),
    ],
)
def test_what_no_hubert_layout_expresses_is_said(tmp_path, capsys, choices, says):
    run, _ = write_run(tmp_path / "run", **choices)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert says in said and "no HuBERT layout expresses" in said
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_by_name(run):
    path, net = run
    assert torch.equal(open_run(path).mert().mask_vector, net.mask_vector)
    assert open_run(path, "best").checkpoint == "u00000001"
    with pytest.raises(ValueError, match="u00000009"):
        open_run(path, "u00000009")
    with pytest.raises(ValueError, match="name the folder of a training run"):
        open_run(path / "checkpoints")
