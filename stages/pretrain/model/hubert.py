"""Names and layout of Hugging Face's HuBERT for our weights, both ways; refusals for what HuBERT cannot
express.

D width of the encoder. Only the encoder travels: heads stay with the pre-training run.
"""

import re
from typing import Any

import torch
from torch import Tensor

from stages.pretrain.model.config import ConvFront, Model
from stages.signal.rates import RATE_HZ

# Ours → HuBERT's. `attention.qkv` is three tensors there, {q,k,v}_proj.
NAMES = (
    (r"mask_vector", r"masked_spec_embed"),
    (r"front_end\.first\.weight", r"feature_extractor.conv_layers.0.conv.weight"),
    (r"front_end\.first\.norm_(weight|bias)", r"feature_extractor.conv_layers.0.layer_norm.\1"),
    (r"input_norm\.(weight|bias)", r"feature_projection.layer_norm.\1"),
    (r"input_projection\.(weight|bias)", r"feature_projection.projection.\1"),
    (r"encoder\.positions\.(weight_g|weight_v|bias)", r"encoder.pos_conv_embed.conv.\1"),
    (r"encoder\.norm\.(weight|bias)", r"encoder.layer_norm.\1"),
    (r"encoder\.layers\.(\d+)\.attention\.out\.(weight|bias)", r"encoder.layers.\1.attention.out_proj.\2"),
    (r"encoder\.layers\.(\d+)\.attention_norm\.(weight|bias)", r"encoder.layers.\1.layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.wide\.(weight|bias)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (r"encoder\.layers\.(\d+)\.narrow\.(weight|bias)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (r"encoder\.layers\.(\d+)\.ffn_norm\.(weight|bias)", r"encoder.layers.\1.final_layer_norm.\2"),
)
REST = re.compile(r"front_end\.rest\.(\d+)\.weight")  # our rest.0 is their convolution 1
QKV = re.compile(r"encoder\.layers\.(\d+)\.attention\.qkv\.(weight|bias)")
HEADS = ("code_heads.", "cqt_head.")


def refuse(model: Model) -> None:
    """ValueError naming what in this model no HuBERT layout expresses."""
    asked = {"front_end": "conv", "positions": "conv", "block": "transformer", "attention_bias": "none"}
    other = [
        f"model.{name}: {getattr(model, name)} (HuBERT has {only} only)"
        for name, only in asked.items()
        if getattr(model, name) != only
    ]
    if other:
        raise ValueError(
            f"{'; '.join(other)}: no HuBERT layout expresses this model. `overtone features` reads its "
            "checkpoints as they are; a model to be exported is trained with the values named"
        )


def hubert_name(name: str) -> list[str]:
    """HuBERT's name of one of our encoder's tensors; three for query, key and value together. ValueError for
    any other."""
    if found := REST.fullmatch(name):
        return [f"feature_extractor.conv_layers.{int(found[1]) + 1}.conv.weight"]
    if found := QKV.fullmatch(name):
        return [f"encoder.layers.{found[1]}.attention.{part}_proj.{found[2]}" for part in "qkv"]
    for ours, theirs in NAMES:
        if found := re.fullmatch(ours, name):
            return [found.expand(theirs)]
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
    """HuBERT's state dict → ours, for the encoder tensors of `expected` (a `Mert.state_dict()`).

    Strict: ValueError names tensors that are missing, left over or of another shape.
    """
    given = {newer(name): value for name, value in tensors.items()}
    out = {}
    for name, value in expected.items():
        if name.startswith(HEADS):
            continue
        names = hubert_name(name)
        missing = [n for n in names if n not in given]
        if missing:
            raise ValueError(
                f"weights: {missing[0]} is missing: they are of another architecture, or cut short"
            )
        joined = torch.cat([given.pop(n) for n in names]).to(value.dtype)
        if joined.shape != value.shape:
            raise ValueError(
                f"weights: {names[0]} gives {tuple(joined.shape)}, this model has {tuple(value.shape)}: "
                "set the section model: as the weights were trained"
            )
        out[name] = joined
    if given:
        raise ValueError(
            f"weights: {sorted(given)[0]} ({len(given)} in all) has no place in this model: "
            "set the section model: as the weights were trained"
        )
    return out


def newer(name: str) -> str:
    """A HuBERT tensor's name as older files and the recipe spell it: no model prefix, weight_g and
    weight_v."""
    name = re.sub(r"^(hubert|model|mert)\.", "", name)
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )


def hubert_config(model: Model) -> dict[str, Any]:
    """`config.json` as HubertModel and the authors' MERTModel read it (keys: recipe, "Model names in the
    ecosystem")."""
    refuse(model)
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.ffn,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "do_stable_layer_norm": model.norm == "pre",
        "conv_bias": False,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "num_feat_extract_layers": len(model.conv.channels),
        "conv_dim": list(model.conv.channels),
        "conv_kernel": list(model.conv.kernels),
        "conv_stride": list(model.conv.strides),
        "num_conv_pos_embeddings": model.position_kernel,
        "num_conv_pos_embedding_groups": model.position_groups,
        "conv_pos_batch_norm": False,
        "feat_proj_layer_norm": True,
        "feat_proj_dropout": model.input_dropout,
        "hidden_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
        "activation_dropout": model.activation_dropout,
        "layerdrop": model.layer_drop,
        "final_dropout": 0.0,
        "apply_spec_augment": False,
        "initializer_range": 0.02,
        "sample_rate": RATE_HZ,
        "feature_extractor_cqt": False,
        "deepnorm": False,
        "attention_relax": -1.0 if model.attention_relax is None else model.attention_relax,
        "torch_dtype": "float32",
    }


FIXED = {
    "conv_bias": False,
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "conv_pos_batch_norm": False,
}


def model_of(config: dict[str, Any]) -> Model:
    """The sizes of a HuBERT or MERT `config.json`; ValueError for what we have no layer for.

    Keys left out are transformers' HubertConfig defaults, which are the 95M model's sizes.
    """
    for key, ours in FIXED.items():
        if config.get(key, ours) != ours:
            raise ValueError(f"config.json: {key} is {config[key]!r}, this model has {ours!r} only")
    front = ConvFront(
        tuple(config.get("conv_dim", ConvFront.channels)),
        tuple(config.get("conv_kernel", ConvFront.kernels)),
        tuple(config.get("conv_stride", ConvFront.strides)),
    )
    relax = config.get("attention_relax", -1.0)
    return Model(
        conv=front,
        layers=config.get("num_hidden_layers", 12),
        width=config.get("hidden_size", 768),
        ffn=config.get("intermediate_size", 3072),
        heads=config.get("num_attention_heads", 12),
        norm="pre" if config.get("do_stable_layer_norm", False) else "post",
        position_kernel=config.get("num_conv_pos_embeddings", 128),
        position_groups=config.get("num_conv_pos_embedding_groups", 16),
        input_dropout=config.get("feat_proj_dropout", 0.0),
        hidden_dropout=config.get("hidden_dropout", 0.1),
        attention_dropout=config.get("attention_dropout", 0.1),
        activation_dropout=config.get("activation_dropout", 0.1),
        layer_drop=config.get("layerdrop", 0.1),
        attention_relax=relax if relax and relax > 0 else None,
    )
