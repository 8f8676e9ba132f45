"""Import of published layouts, on files of the same layout made here."""

import argparse
import json
import os
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel

from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.hubert import hubert_config, model_of, to_hubert
from stages.pretrain.model.objective import Objective
from stages.pretrain.model.published import load_into
from tests.stages.pretrain.sizes import mert, small

COLUMN = (CodeColumn("codes-a", 3, 20),)


def new(seed: int, **choices):
    return mert(small(**choices), Objective(head_width=6), COLUMN, 7, seed)


def fairseq_state(net, specials: int = 4) -> dict[str, torch.Tensor]:
    """Names as `MERT-v1-*_fairseq.pt` has them (M mert_model.py, F wav2vec2.py), spelt out anew from the
    modules."""
    state = {"mask_emb": net.mask_vector}
    first = net.front_end.first
    state |= {
        "feature_extractor.conv_layers.0.0.weight": first.weight,
        "feature_extractor.conv_layers.0.2.weight": first.norm_weight,
        "feature_extractor.conv_layers.0.2.bias": first.norm_bias,
    }
    state |= {
        f"feature_extractor.conv_layers.{i}.0.weight": layer.weight
        for i, layer in enumerate(net.front_end.rest, 1)
    }
    modules = {
        "layer_norm": net.input_norm,
        "post_extract_proj": net.input_projection,
        "encoder.layer_norm": net.encoder.norm,
    }
    positions = net.encoder.positions
    state |= {f"encoder.pos_conv.0.{n}": getattr(positions, n) for n in ("bias", "weight_g", "weight_v")}
    for i, layer in enumerate(net.encoder.layers):
        at, attention = f"encoder.layers.{i}", layer.attention
        for part, weight, bias in zip(
            "qkv", attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True
        ):
            state |= {f"{at}.self_attn.{part}_proj.weight": weight, f"{at}.self_attn.{part}_proj.bias": bias}
        modules |= {
            f"{at}.self_attn.out_proj": attention.out,
            f"{at}.self_attn_layer_norm": layer.attention_norm,
            f"{at}.fc1": layer.wide,
            f"{at}.fc2": layer.narrow,
            f"{at}.final_layer_norm": layer.ffn_norm,
        }
    head = net.code_heads[0]
    modules |= {"final_proj": head.projection, "encoder_cqt_model.fc": net.cqt_head}
    state |= {
        f"{name}.{part}": getattr(module, part)
        for name, module in modules.items()
        for part in ("weight", "bias")
    }
    table_KCE = head.table_KCE.detach()
    table = torch.cat([torch.randn(len(table_KCE), specials, table_KCE.shape[2]), table_KCE], 1).flatten(0, 1)
    state |= {"label_embs_concat": table, "encoder_cqt_model.spec_layer.cqt_kernels_real": torch.zeros(2)}
    return {name: value.detach().clone() for name, value in state.items()}


def save_fairseq(path, net, **changes):
    model = {
        "_name": "mert",
        "layer_norm_first": net.model.norm == "pre",
        "encoder_attention_heads": net.model.heads,
        **changes,
    }
    torch.save(
        {
            "args": argparse.Namespace(lr=[0.1]),
            "cfg": {"model": model},
            "model": fairseq_state(net),
            "optimizer_history": [{"num_updates": 5}],
            "extra_state": {"epoch": 2},
            "last_optimizer_state": None,
        },
        path,
    )
    return path


def same(a, b, but: tuple[str, ...] = ()) -> bool:
    return all(
        torch.equal(value, b.state_dict()[name])
        for name, value in a.state_dict().items()
        if not name.startswith(but)
    )


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_fairseq_checkpoints_come_with_their_heads(tmp_path, norm):
    source, net = new(1, norm=norm), new(2, norm=norm)
    found = load_into(net, save_fairseq(tmp_path / "mert_fairseq.pt", source))
    assert same(source, net)
    assert (
        found.layout == "fairseq" and found.taken == ("encoder", "code head", "CQT head") and not found.fresh
    )


def test_heads_of_another_shape_begin_anew(tmp_path):
    source = new(1)
    net = mert(small(), Objective(head_width=6), (CodeColumn("codes-a", 3, 31),), 9, 2)
    found = load_into(net, save_fairseq(tmp_path / "mert.pt", source))
    assert same(source, net, ("code_heads", "cqt_head"))
    assert found.taken == ("encoder",) and len(found.fresh) == 2


@pytest.mark.parametrize(
    "kind", ["safetensors folder", "bin folder", "file", "with a prefix", "saved by transformers"]
)
def test_hugging_face_checkpoints(tmp_path, kind):
    source, net = new(1), new(2)
    state = to_hubert(source.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(hubert_config(source.model)))
    place = tmp_path
    if kind == "bin folder":
        torch.save(state, tmp_path / "pytorch_model.bin")
    elif kind == "saved by transformers":
        theirs = HubertModel(HubertConfig(**hubert_config(source.model)))
        theirs.load_state_dict(
            {
                n.replace("weight_g", "parametrizations.weight.original0").replace(
                    "weight_v", "parametrizations.weight.original1"
                ): v
                for n, v in state.items()
            }
        )
        theirs.save_pretrained(tmp_path)
    else:
        state = (
            {f"hubert.{name}": value for name, value in state.items()} if kind == "with a prefix" else state
        )
        save_file(state, tmp_path / "model.safetensors")
        place = tmp_path / "model.safetensors" if kind == "file" else tmp_path
    found = load_into(net, place)
    assert same(source, net, ("code_heads", "cqt_head"))
    assert found.layout == "hugging face" and "code head (the file has none)" in found.fresh


def test_another_norm_style_is_refused_though_all_tensors_fit(tmp_path):
    path = save_fairseq(tmp_path / "mert.pt", new(1, norm="pre"))
    with pytest.raises(ValueError, match="model.norm is 'post', the weights were trained with 'pre'"):
        load_into(new(2), path)


@pytest.mark.parametrize("key", ["deepnorm", "feature_extractor_cqt"])
def test_layers_we_do_not_have_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match=key):
        load_into(new(2), save_fairseq(tmp_path / "mert.pt", new(1), **{key: True}))
    with pytest.raises(ValueError, match=key):
        model_of(hubert_config(small()) | {key: True})


def test_sizes_come_back_from_config_json():
    for model in (small(), small(norm="pre", attention_relax=32.0)):
        found = model_of(hubert_config(model))
        assert hubert_config(found) == hubert_config(model)


class Malice:
    def __reduce__(self):
        return os.system, ("touch /tmp/overtone-was-here",)


def test_a_pickle_that_would_call_something_is_refused_unrun(tmp_path):
    path = tmp_path / "mert.pt"
    torch.save({"model": {}, "args": Malice()}, path)
    with pytest.raises(ValueError, match="would call .*system"):
        load_into(new(1), path)
    assert not os.path.exists("/tmp/overtone-was-here")


def test_classes_of_fairseq_are_read_as_nothing(tmp_path, monkeypatch):
    """Its checkpoints hold dictionaries as objects (F tasks/hubert_pretraining.py); fairseq is not imported
    for them."""
    module = types.ModuleType("fairseq.data.dictionary")
    module.Dictionary = type("Dictionary", (), {"__module__": module.__name__, "__qualname__": "Dictionary"})
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.data", types.ModuleType("fairseq.data"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    words = module.Dictionary()
    words.symbols = ["<s>", "<pad>", "</s>", "<unk>", "0"]
    path, source = tmp_path / "mert.pt", new(1)
    torch.save({"model": fairseq_state(source), "task_state": {"dictionaries": [words]}}, path)
    for name in ("fairseq", "fairseq.data", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    net = new(2)
    load_into(net, path)
    assert same(source, net)


@pytest.mark.parametrize("content, says", [(b"", "no PyTorch file"), (b"x" * 100, "no PyTorch file")])
def test_damaged_files_are_refused(tmp_path, content, says):
    path = tmp_path / "mert.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        load_into(new(1), path)
    with pytest.raises(ValueError, match="no such file"):
        load_into(new(1), tmp_path / "none.pt")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        load_into(new(1), tmp_path)
