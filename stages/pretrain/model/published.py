"""Published weights as the beginning of a run: Hugging Face's layout (`m-a-p/MERT-v1-*`) and the authors'
fairseq checkpoints (`MERT-v1-*_fairseq.pt`).

The encoder is taken whole or not at all. Heads, which only fairseq files have, are taken where their shapes
are ours.

D width, K codebooks, C codes of a codebook, E width of a code.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.pretrain.model.hubert import FIXED, from_hubert, model_of
from stages.pretrain.model.mert import Mert
from stages.pretrain.model.weight_files import read, tensors

# fairseq's → HuBERT's (M scripts/convert_MERT_HF.py).
FAIRSEQ = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.weight", r"feature_extractor.conv_layers.\1.conv.weight"),
    (
        r"feature_extractor\.conv_layers\.0\.2\.(weight|bias)",
        r"feature_extractor.conv_layers.0.layer_norm.\1",
    ),
    (r"layer_norm\.(weight|bias)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(weight|bias)", r"feature_projection.projection.\1"),
    (r"mask_emb", r"masked_spec_embed"),
    (r"encoder\.pos_conv\.0\.(.+)", r"encoder.pos_conv_embed.conv.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.(.+)", r"encoder.layers.\1.attention.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)", r"encoder.layers.\1.layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.fc1\.(.+)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (r"encoder\.layers\.(\d+)\.fc2\.(.+)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (r"(encoder\.layers\.\d+\.final_layer_norm\..+|encoder\.layer_norm\..+)", r"\1"),
)
HEADS = re.compile(
    r"(final_projs?|label_embs_concat|logit_temp_list|encoder_cqt_model|encoder_mel_model)\b.*"
)
CQT_HEAD = "CQT head"
SPECIALS = 4  # a fairseq dictionary's <s>, <pad>, </s>, <unk> precede the codes


@dataclass(frozen=True)
class Imported:
    layout: str  # hugging face | fairseq
    taken: tuple[str, ...]  # parts of the model
    fresh: tuple[str, ...]  # parts that keep the values they had, and why

    def __str__(self) -> str:
        fresh = f"; begun anew: {', '.join(self.fresh)}" if self.fresh else ""
        return f"weights of {self.layout} layout: {', '.join(self.taken)}{fresh}"


def load_into(net: Mert, place: str | Path) -> Imported:
    """Give `net` the weights at `place`; ValueError where the encoder is another one, naming the tensor or
    the setting."""
    found, config = read(place)
    if isinstance(found.get("model"), dict):
        _same_choices(net, _fairseq_choices(found))
        given = tensors(found["model"])
        heads = {name: value for name, value in given.items() if HEADS.fullmatch(name)}
        encoder, layout = (
            {_hubert_name(name): value for name, value in given.items() if name not in heads},
            "fairseq",
        )
    else:
        if config is not None:
            _same_choices(net, {"norm": model_of(config).norm, "heads": model_of(config).heads})
        encoder, heads, layout = tensors(found), {}, "hugging face"
    state = from_hubert(encoder, net.state_dict())
    taken, fresh = ["encoder"], []
    for part, own, reason in (_code_head(net, heads), _cqt_head(net, heads)):
        if own:
            state |= own
            taken.append(part)
        elif part:
            fresh.append(f"{part} ({reason})")
    net.load_state_dict(net.state_dict() | state, strict=True)
    return Imported(layout, tuple(taken), tuple(fresh))


def _hubert_name(name: str) -> str:
    for theirs, hubert in FAIRSEQ:
        if found := re.fullmatch(theirs, name):
            return found.expand(hubert)
    return name  # `from_hubert` will name it as left over


def _fairseq_choices(found: dict[str, Any]) -> dict[str, Any]:
    """What tensors alone do not tell: the norm style and the number of heads; ValueError for layers we do not
    have."""
    config = found.get("cfg")
    config = config.get("model") if isinstance(config, dict) else None
    if not isinstance(config, dict):
        return {}
    for key in ("deepnorm", "subln", "feature_extractor_cqt", "conv_bias", "do_cnn_feat_stable_layernorm"):
        if config.get(key):
            raise ValueError(
                f"weights: cfg.model.{key} is {config[key]!r}, this model has {FIXED.get(key, False)!r} only"
            )
    norm = {True: "pre", False: "post"}.get(config.get("layer_norm_first"))
    return {"norm": norm, "heads": config.get("encoder_attention_heads")}


def _same_choices(net: Mert, theirs: dict[str, Any]) -> None:
    for name, value in theirs.items():
        if value is not None and getattr(net.model, name) != value:
            raise ValueError(
                f"model.{name} is {getattr(net.model, name)!r}, the weights were trained with "
                f"{value!r}: set model.{name}={value}"
            )


def _code_head(net: Mert, heads: dict[str, Tensor]) -> tuple[str, dict[str, Tensor], str]:
    """The authors' projection and code table, for a model of one code column of their shape."""
    if not net.codes:
        return "", {}, ""
    if "label_embs_concat" not in heads:
        return "code head", {}, "the file has none"
    head = net.code_heads[0]
    books, codes, width = head.table_KCE.shape
    table = heads["label_embs_concat"]
    weight, bias = _projection(heads)
    rows = len(table) // books
    fits = (
        len(net.codes) == 1
        and len(table) % books == 0
        and rows in (codes, codes + SPECIALS)
        and table.shape[1] == width
        and weight is not None
        and weight.shape == head.projection.weight.shape
    )
    if not fits:
        return "code head", {}, f"theirs is {tuple(table.shape)}"
    own = {
        "projection.weight": weight,
        "projection.bias": bias,
        "table_KCE": table.view(books, rows, width)[:, rows - codes :],
    }
    if (
        head.log_scale_K is not None
        and heads.get("logit_temp_list", torch.empty(0)).shape == head.log_scale_K.shape
    ):
        own["log_scale_K"] = heads["logit_temp_list"]
    return "code head", {f"code_heads.0.{name}": value for name, value in own.items()}, ""


def _projection(heads: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """One linear for all codebooks; where codebooks were sampled, M keeps one each."""
    if "final_proj.weight" in heads:
        return heads["final_proj.weight"], heads["final_proj.bias"]
    each = sorted({int(name.split(".")[1]) for name in heads if name.startswith("final_projs.")})
    if not each:
        return None, None
    return tuple(torch.cat([heads[f"final_projs.{k}.{part}"] for k in each]) for part in ("weight", "bias"))


def _cqt_head(net: Mert, heads: dict[str, Tensor]) -> tuple[str, dict[str, Tensor], str]:
    if net.cqt_head is None:
        return "", {}, ""
    own = {part: heads.get(f"encoder_cqt_model.fc.{part}") for part in ("weight", "bias")}
    if any(value is None or value.shape != getattr(net.cqt_head, part).shape for part, value in own.items()):
        return CQT_HEAD, {}, "the file has none of this shape"
    return CQT_HEAD, {f"cqt_head.{part}": value for part, value in own.items()}, ""
