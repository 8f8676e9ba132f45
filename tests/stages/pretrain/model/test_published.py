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

from stages.evaluate.run import open_backbone
from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.config import CqtFront, MelFront
from stages.pretrain.model.hubert import hubert_config, model_of, to_hubert
from stages.pretrain.model.objective import Objective
from stages.pretrain.model.own_layout import own_config, own_weights
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


# What the authors' config.json says beside the sizes.
MERT_CONFIG = {
    "activation_dropout": 0.0,
    "architectures": ["MERTModel"],
    "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
    "conv_bias": False,
    "conv_pos_batch_norm": False,
    "deepnorm": False,
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 84,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-05,
    "model_type": "mert_model",
    "sample_rate": 24000,
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
    "transformers_version": "4.27.1",
    "vocab_size": 32,
}


def save_mert_folder(folder, net, kind: str = "bin", names: str = "weight_g"):
    """As m-a-p/MERT-v1-95M (post-norm) and -330M (pre-norm, attention_relax) are laid out, of other sizes.
    `names`: of the positional convolution's weight-norm, before and since torch's parametrizations."""
    folder.mkdir()
    state = to_hubert(net.state_dict())
    if names == "parametrizations":
        old = ("weight_g", "weight_v")
        for name in [name for name in state if name.endswith(old)]:
            number = old.index(name[-8:])
            state[f"{name[:-9]}.parametrizations.weight.original{number}"] = state.pop(name)
    model, pre = net.model, net.model.norm == "pre"
    config = MERT_CONFIG | {
        "attention_relax": 32.0 if pre else -1.0,
        "do_stable_layer_norm": pre,
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_conv_pos_embeddings": model.position_kernel,
        "num_conv_pos_embedding_groups": model.position_groups,
        "conv_dim": list(model.conv.channels),
        "conv_kernel": list(model.conv.kernels),
        "conv_stride": list(model.conv.strides),
    }
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("names", ["weight_g", "parametrizations"])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("norm", ["post", "pre"], ids=["95M", "330M"])
def test_folders_laid_out_as_mert_are_gone_on_with(tmp_path, norm, kind, names):
    source, net = new(1, norm=norm), new(2, norm=norm)
    folder = save_mert_folder(tmp_path / "MERT-v1", source, kind, names)
    found = load_into(net, folder)
    assert same(source, net, ("code_heads", "cqt_head"))
    assert found.taken == ("encoder",) and found.fresh == ("code head (the file has none)",) + (
        ("CQT head (the file has none of this shape)",)
    )
    wave_BN = torch.randn(1, 8_000) * 0.1
    assert torch.equal(open_backbone(folder).hidden(wave_BN)[-1], source.eval().hidden(wave_BN)[-1])
    with pytest.raises(ValueError, match="set model.norm="):
        load_into(new(2, norm="pre" if norm == "post" else "post"), folder)


def test_what_export_wrote_is_gone_on_with(tmp_path):
    source, net = new(1, front_end="mel", stack=3), new(2, front_end="mel", stack=3)
    (tmp_path / "config.json").write_text(json.dumps(own_config(source.model)))
    save_file(own_weights(source.model, source.state_dict()), tmp_path / "model.safetensors")
    found = load_into(net, tmp_path)
    assert found.layout == "overtone" and same(source, net, ("code_heads", "cqt_head"))
    for other, says in (
        ({"mel": MelFront(24, 1024), "stack": 3}, "model.mel is .*1024.*trained with .*512"),
        ({"heads": 2, "stack": 3}, "model.heads is 2"),
        ({"stack": 1}, "model.stack is 1, the weights were trained with 3"),
        ({"width": 64, "stack": 3}, "mask_vector is \\(32,\\), this model has \\(64,\\)"),
    ):
        with pytest.raises(ValueError, match=says):
            load_into(new(2, front_end="mel", **other), tmp_path)


@pytest.mark.parametrize(
    "other, says",
    [
        ({"mel": MelFront(24, 1024)}, "model.mel is .*1024.*trained with .*512"),
        ({"cqt": CqtFront(24, 12, 110.0)}, "model.cqt is .*110.*trained with .*220"),
    ],
)
def test_of_two_spectra_both_must_be_those_of_the_weights(tmp_path, other, says):
    source = new(1, front_end="mel_cqt")
    (tmp_path / "config.json").write_text(json.dumps(own_config(source.model)))
    save_file(own_weights(source.model, source.state_dict()), tmp_path / "model.safetensors")
    net = new(2, front_end="mel_cqt")
    load_into(net, tmp_path)
    assert same(source, net, ("code_heads", "cqt_head"))
    with pytest.raises(ValueError, match=says):
        load_into(new(2, front_end="mel_cqt", **other), tmp_path)


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
