"""Export: a RUN becomes a folder that transformers loads, and that gives the same hidden states."""

import json

import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, HubertModel

from pipeline.cli import main
from stages.evaluate.card import card
from stages.evaluate.run import open_backbone, open_run
from stages.pretrain.model.objective import Objective
from stages.shards import catalog
from stages.shards.storage import Storage
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
    assert "Probes" not in text and "trust_remote_code" not in text


def test_an_exported_folder_is_read_back(exported):
    again = open_backbone(exported[0])
    assert all(
        torch.equal(value, exported[1].state_dict()[name]) for name, value in again.state_dict().items()
    )


@pytest.mark.parametrize(
    "choices",
    [
        {"front_end": "mel"},
        {"positions": "rotary"},
        {"block": "conformer", "norm": "pre"},
        {"attention_bias": "alibi"},
        {"stack": 2},
    ],
)
def test_what_no_hubert_layout_expresses_comes_with_a_modelling_file(tmp_path, choices, monkeypatch):
    run, _ = write_run(tmp_path / "run", **choices)
    (run / "probe").mkdir()
    (run / "probe" / "table.md").write_text("| key | 0.61 |\n")
    written = []
    plain = Storage.write
    monkeypatch.setattr(
        Storage, "write", lambda self, name, data: written.append(name) or plain(self, name, data)
    )
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert "modeling_overtone.py" in written and written[-1] == "config.json"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "overtone"
    text = (tmp_path / "out" / "README.md").read_text()
    assert "trust_remote_code=True" in text and "## Probes\n\n| key | 0.61 |\n" in text
    assert ("37.5 frames\na second" in text) == ("stack" in choices)


@pytest.mark.parametrize("choices", [{}, {"front_end": "mel"}], ids=["HuBERT's", "own layout"])
def test_heads_of_musical_targets_stay_behind_and_the_card_names_them(tmp_path, choices):
    objective = Objective(head_width=6, musical=("chroma", "onsets"))
    run, net = write_run(tmp_path / "run", objective, **choices)
    assert any(name.startswith("musical_head.") for name in net.state_dict())
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in kept if "_head" in name]
    assert "| of the CQT | chroma, onsets | |" in (tmp_path / "out" / "README.md").read_text()
    assert "| of the CQT |" not in card(open_run(write_run(tmp_path / "plain")[0]))


def test_the_card_tells_sources_and_licences(tmp_path):
    run, _ = write_run(tmp_path / "run")
    music, out = tmp_path / "music", tmp_path / "labels"
    for name in ("free", "stated", "bare"):
        (music / name).mkdir(parents=True)
    out.mkdir()
    (music / "free" / "LICENSE.txt").write_text("do what you like")
    (music / "stated" / "package.json").write_text(json.dumps({"licence": "CC-BY-4.0"}))
    names = ["free/a.ogg", "free/b.ogg", "stated/deep/c.ogg", "bare/d.ogg", "bare/unused.ogg"]
    plan, found = [], []
    for number, name in enumerate(names):
        recording, at = f"{number:016x}", str(music / name)
        row = {"recording": recording, "path": at, "path_bytes": at.encode(), "size": 10**8, "mtime_ns": 1}
        row |= {"duration_s": 1800.0, "quick": "q"}
        found.append(row | {"status": "kept", "root": str(music), "name_bytes": name.encode()})
        plan.append(row | {"shard": f"s{number // 2}", "order": number, "attempt": 0, "split": "train"})
    for name, schema, rows in (("catalog", catalog.CATALOG, found), ("plan", catalog.PLAN, plan)):
        catalog.write_parquet(
            out / f"{name}.parquet", schema, pa.Table.from_pylist(rows, schema).to_batches()
        )
    config, data = (
        yaml.safe_load((run / "config.yaml").read_text()),
        json.loads((run / "data.json").read_text()),
    )
    config["data"] = {"corpora": [str(out), str(tmp_path / "gone")]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    data |= {"shards": [["s0", "s1"], ["s0"]], "recordings": {"train": 3, "valid": 1}}
    (run / "data.json").write_text(json.dumps(data))
    text = card(open_run(run))
    for expected in (
        "1.50 hours for training (3 recordings), 0.25 hours held out (1 recordings).",
        "| free | 2 | 1.00 | see LICENSE.txt |",
        "| stated | 1 | 0.50 | CC-BY-4.0 |",
        "| bare | 1 | 0.50 | not stated |",
        f"The catalogue of `{tmp_path / 'gone'}` could not be read",
    ):
        assert expected in text


def test_a_checkpoint_by_name(run):
    path, net = run
    assert torch.equal(open_run(path).mert().mask_vector, net.mask_vector)
    assert open_run(path, "best").checkpoint == "u00000001"
    with pytest.raises(ValueError, match="u00000009"):
        open_run(path, "u00000009")
    with pytest.raises(ValueError, match="name the folder of a training run"):
        open_run(path / "checkpoints")
