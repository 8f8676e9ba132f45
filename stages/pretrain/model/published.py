"""Published weights as the beginning of a run: Hugging Face's layout (`m-a-p/MERT-v1-*`), a folder that
`overtone export` wrote, and the authors' fairseq checkpoints (`MERT-v1-*_fairseq.pt`). The encoder is taken
whole; heads, of fairseq files, where their shapes are ours."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.pretrain.model import own_layout
from stages.pretrain.model.hubert import from_hubert, model_of
from stages.pretrain.model.mert import Mert
from stages.pretrain.model.weight_files import read, tensors

# fairseq's → HuBERT's (M scripts/convert_MERT_HF.py).
FAIRSEQ = (
    (r"(conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(conv_layers\.0)\.2\.", r"\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)
HEADS = re.compile(r"(final_projs?|label_embs_concat|logit_temp_list|encoder_(cqt|mel)_model)\b.*")
CQT_HEAD = "CQT head"
SPECIALS = 4  # a fairseq dictionary's <s>, <pad>, </s>, <unk> precede the codes


@dataclass(frozen=True)
class Imported:
    layout: str  # hugging face | fairseq | overtone
    taken: tuple[str, ...]
    fresh: tuple[str, ...]  # parts that keep the values they had, and why

    def __str__(self) -> str:
        fresh = f"; begun anew: {', '.join(self.fresh)}" if self.fresh else ""
        return f"weights of {self.layout} layout: {', '.join(self.taken)}{fresh}"


def load_into(net: Mert, place: str | Path) -> Imported:
    """ValueError names the tensor or setting in which the encoder at `place` differs."""
    found, config = read(place)
    if isinstance(found.get("model"), dict):
        layout, given, choices = "fairseq", tensors(found["model"]), _fairseq_choices(found)
        heads = {name: given.pop(name) for name in list(given) if HEADS.fullmatch(name)}
        given = {_hubert_name(name): value for name, value in given.items()}
    elif config is not None and config.get("model_type") == own_layout.KIND:
        layout, given, heads = "overtone", tensors(found), {}
        choices = own_layout.choices(config)
    else:
        layout, given, heads = "hugging face", tensors(found), {}
        theirs = {} if config is None else vars(model_of(config))
        choices = {name: theirs.get(name) for name in ("norm", "heads")}
    for name, value in choices.items():
        own = getattr(net.model, name)
        if value is not None and own != value:
            raise ValueError(
                f"model.{name} is {own!r}, the weights were trained with {value!r}: set model.{name}={value}"
            )
    state = (own_layout.from_own if layout == "overtone" else from_hubert)(given, net.state_dict())
    taken, fresh = ["encoder"], []
    for part, there, take in (("code head", net.codes, _code_head), (CQT_HEAD, net.cqt_head, _cqt_head)):
        own = take(net, heads) if there else {}
        if isinstance(own, str):
            fresh.append(f"{part} ({own})")
        elif own:
            state |= own
            taken.append(part)
    net.load_state_dict(net.state_dict() | state, strict=True)
    return Imported(layout, tuple(taken), tuple(fresh))


def _hubert_name(name: str) -> str:
    """Names that are no encoder's stay: `from_hubert` names them as left over."""
    for fairseq, hubert in FAIRSEQ:
        name = re.sub(fairseq, hubert, name)
    return name


def _fairseq_choices(found: dict[str, Any]) -> dict[str, Any]:
    """Which no tensor shows; ValueError for layers we do not have."""
    config = found.get("cfg")
    config = config.get("model") if isinstance(config, dict) else None
    config = config if isinstance(config, dict) else {}
    for key in ("deepnorm", "subln", "feature_extractor_cqt", "conv_bias", "do_cnn_feat_stable_layernorm"):
        if config.get(key):
            raise ValueError(f"weights: cfg.model.{key} is {config[key]!r}, this model has False only")
    norm = {True: "pre", False: "post"}.get(config.get("layer_norm_first"))
    return {"norm": norm, "heads": config.get("encoder_attention_heads")}


def _code_head(net: Mert, heads: dict[str, Tensor]) -> dict[str, Tensor] | str:
    """For a model of one code column of their shape; or why not."""
    if "label_embs_concat" not in heads:
        return "the file has none"
    head, table = net.code_heads[0], heads["label_embs_concat"]
    books, codes, width = head.table_KCE.shape
    weight, bias = _projection(heads)
    rows, rest = divmod(len(table), books)
    fits = len(net.codes) == 1 and not rest and rows in (codes, codes + SPECIALS) and table.shape[1] == width
    if not fits or weight is None or weight.shape != head.projection.weight.shape:
        return f"theirs is {tuple(table.shape)}"
    own = {"projection.weight": weight, "projection.bias": bias}
    own["table_KCE"] = table.view(books, rows, width)[:, rows - codes :]
    scale = heads.get("logit_temp_list")
    if head.log_scale_K is not None and scale is not None and scale.shape == head.log_scale_K.shape:
        own["log_scale_K"] = scale
    return {f"code_heads.0.{name}": value for name, value in own.items()}


def _projection(heads: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """One linear for all codebooks; where codebooks were sampled, M keeps one each."""
    if "final_proj.weight" in heads:
        return heads["final_proj.weight"], heads["final_proj.bias"]
    each = sorted({int(name.split(".")[1]) for name in heads if name.startswith("final_projs.")})
    if not each:
        return None, None
    return tuple(torch.cat([heads[f"final_projs.{k}.{part}"] for k in each]) for part in ("weight", "bias"))


def _cqt_head(net: Mert, heads: dict[str, Tensor]) -> dict[str, Tensor] | str:
    own = {part: heads.get(f"encoder_cqt_model.fc.{part}") for part in ("weight", "bias")}
    if any(value is None or value.shape != getattr(net.cqt_head, part).shape for part, value in own.items()):
        return "the file has none of this shape"
    return {f"cqt_head.{part}": value for part, value in own.items()}
