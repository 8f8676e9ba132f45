"""Hugging Face's HuBERT's names and layout for our encoder's weights, both ways; what it cannot express is
refused."""

import re
from typing import Any

import torch
from torch import Tensor

from stages.pretrain.model.config import ConvFront, Model
from stages.signal.rates import RATE_HZ

# Ours → HuBERT's: whole names, modules, and modules of a layer. `attention.qkv` is three tensors there.
NAMES = {
    "mask_vector": "masked_spec_embed",
    "front_end.first.norm_weight": "feature_extractor.conv_layers.0.layer_norm.weight",
    "front_end.first.norm_bias": "feature_extractor.conv_layers.0.layer_norm.bias",
}
MODULES = {
    "front_end.first": "feature_extractor.conv_layers.0.conv",
    "input_norm": "feature_projection.layer_norm",
    "input_projection": "feature_projection.projection",
    "encoder.positions": "encoder.pos_conv_embed.conv",
    "encoder.norm": "encoder.layer_norm",
}
LAYER_MODULES = {
    "attention.out": "attention.out_proj",
    "attention_norm": "layer_norm",
    "wide": "feed_forward.intermediate_dense",
    "narrow": "feed_forward.output_dense",
    "ffn_norm": "final_layer_norm",
}
REST = re.compile(r"front_end\.rest\.(\d+)\.weight")  # our rest.0 is their convolution 1
LAYER = re.compile(r"(encoder\.layers\.\d+)\.(.+)\.(weight|bias)")
HEADS = ("code_heads.", "cqt_head.", "musical_head.")

# Keys of config.json → our field and transformers' default, which are the 95M model's sizes.
SIZES = {
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "intermediate_size": ("ffn", 3072),
    "num_conv_pos_embeddings": ("position_kernel", 128),
    "num_conv_pos_embedding_groups": ("position_groups", 16),
    "feat_proj_dropout": ("input_dropout", 0.0),
    "hidden_dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "layerdrop": ("layer_drop", 0.1),
}
CONV = {"conv_dim": "channels", "conv_kernel": "kernels", "conv_stride": "strides"}
# What our model has no choice of.
FIXED = {
    "conv_bias": False,
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "conv_pos_batch_norm": False,
}
# Choices of ours that it has no others of.
ONLY = {"front_end": "conv", "stack": 1, "positions": "conv"}
ONLY |= {"block": "transformer", "attention_bias": "none"}


def expresses(model: Model) -> bool:
    return all(getattr(model, name) == value for name, value in ONLY.items())


def refuse(model: Model) -> None:
    """ValueError naming what in this model no HuBERT layout expresses."""
    other = [name for name, value in ONLY.items() if getattr(model, name) != value]
    if other:
        named = (f"model.{name}: {getattr(model, name)} (HuBERT has {ONLY[name]} only)" for name in other)
        raise ValueError(f"{'; '.join(named)}: no HuBERT layout expresses this model")


def hubert_name(name: str) -> list[str]:
    """HuBERT's name of an encoder tensor of ours; three for query, key and value. ValueError for others."""
    module, _, kind = name.rpartition(".")
    if name in NAMES:
        return [NAMES[name]]
    if module in MODULES:
        return [f"{MODULES[module]}.{kind}"]
    if found := REST.fullmatch(name):
        return [f"feature_extractor.conv_layers.{int(found[1]) + 1}.conv.weight"]
    layer, module, kind = found.groups() if (found := LAYER.fullmatch(name)) else ("", "", "")
    if module == "attention.qkv":
        return [f"{layer}.attention.{part}_proj.{kind}" for part in "qkv"]
    if module in LAYER_MODULES:
        return [f"{layer}.{LAYER_MODULES[module]}.{kind}"]
    raise ValueError(f"tensor {name}: HuBERT has no place for it")


def to_hubert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict → HuBERT's, fp32, heads left out."""
    out = {}
    for name, value in state.items():
        if not name.startswith(HEADS):
            names = hubert_name(name)
            out |= zip(names, value.detach().float().cpu().chunk(len(names)), strict=True)
    return {name: value.contiguous().clone() for name, value in sorted(out.items())}


def from_hubert(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """HuBERT's state dict → ours, for the encoder tensors of `expected` (a `Mert.state_dict()`). ValueError
    names tensors that are missing, left over or of another shape."""
    given, out = {newer(name): value for name, value in tensors.items()}, {}
    remedy = "set the section model: as the weights were trained"
    for name, value in expected.items():
        if name.startswith(HEADS):
            continue
        names = hubert_name(name)
        for missing in (n for n in names if n not in given):
            raise ValueError(f"weights: {missing} is missing: they are of another architecture, or cut short")
        out[name] = torch.cat([given.pop(n) for n in names]).to(value.dtype)
        if out[name].shape != value.shape:
            shapes = f"{tuple(out[name].shape)}, this model has {tuple(value.shape)}"
            raise ValueError(f"weights: {names[0]} gives {shapes}: {remedy}")
    if given:
        left = f"{sorted(given)[0]} ({len(given)} in all)"
        raise ValueError(f"weights: {left} has no place in this model: {remedy}")
    return out


def newer(name: str) -> str:
    """A HuBERT tensor's name without model prefix, with the older weight_g and weight_v."""
    name = re.sub(r"^(hubert|model|mert)\.", "", name)
    for i, kind in enumerate("gv"):
        name = name.replace(f"parametrizations.weight.original{i}", f"weight_{kind}")
    return name


def hubert_config(model: Model) -> dict[str, Any]:
    """`config.json` as HubertModel and the authors' MERTModel read it (recipe, "Model names in the
    ecosystem")."""
    refuse(model)
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "do_stable_layer_norm": model.norm == "pre",
        "feat_extract_activation": "gelu",
        "num_feat_extract_layers": len(model.conv.channels),
        "final_dropout": 0.0,
        "apply_spec_augment": False,
        "initializer_range": 0.02,
        "sample_rate": RATE_HZ,
        "attention_relax": -1.0 if model.attention_relax is None else model.attention_relax,
        "torch_dtype": "float32",
        **{key: getattr(model, name) for key, (name, _) in SIZES.items()},
        **{key: list(getattr(model.conv, name)) for key, name in CONV.items()},
        **FIXED,
    }


def model_of(config: dict[str, Any]) -> Model:
    """The sizes of a HuBERT or MERT `config.json`; ValueError for what we have no layer for."""
    for key, ours in FIXED.items():
        if config.get(key, ours) != ours:
            raise ValueError(f"config.json: {key} is {config[key]!r}, this model has {ours!r} only")
    conv = {name: tuple(config.get(key, getattr(ConvFront(), name))) for key, name in CONV.items()}
    relax = config.get("attention_relax", -1.0)
    return Model(
        conv=ConvFront(**conv),
        norm="pre" if config.get("do_stable_layer_norm", False) else "post",
        attention_relax=relax if relax and relax > 0 else None,
        **{name: config.get(key, default) for key, (name, default) in SIZES.items()},
    )
