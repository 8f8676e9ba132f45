"""Our own layout of an encoder for transformers, read by `stages/evaluate/modeling_overtone.py`: tensors have
our names, config.json has the section `model:`, and the tables of a spectrum are stored as tensors."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from stages import config
from stages.pretrain.model.config import Model
from stages.pretrain.model.front_end import spectrum_of
from stages.pretrain.model.hubert import HEADS
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

KIND = "overtone"
MODELLING = "modeling_overtone"
HIDDEN = ("front_end", "stack", "norm", "heads", "positions", "attention_bias")


def own_config(model: Model) -> dict[str, Any]:
    return {
        "architectures": ["OvertoneModel"],
        "auto_map": {"AutoConfig": f"{MODELLING}.OvertoneConfig", "AutoModel": f"{MODELLING}.OvertoneModel"},
        "model_type": KIND,
        "torch_dtype": "float32",
        "sample_rate": RATE_HZ,
        "hop_samples": HOP_SAMPLES,
        "model": asdict(model),
        "spectrum": spectrum_of(model)[0],
    }


def own_weights(model: Model, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """fp32, heads left out."""
    kept = {name: value.detach().float() for name, value in state.items() if not name.startswith(HEADS)}
    kept |= {f"front_end.{name}": value for name, value in spectrum_of(model)[1].items()}
    return {name: value.cpu().contiguous().clone() for name, value in sorted(kept.items())}


def own_model(about: dict[str, Any]) -> Model:
    """Of a config.json. Raises ValueError."""
    return config.build(Model, about.get("model"), "config.json: model")


def choices(about: dict[str, Any]) -> dict[str, Any]:
    """Of a config.json, those that no tensor's shape shows."""
    model = own_model(about)
    return {name: getattr(model, name) for name in (*HIDDEN, *model.front_sections)}


def from_own(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder tensors of `expected` (a `Mert.state_dict()`). ValueError names one that is missing or of
    another shape."""
    out = {}
    for name, value in expected.items():
        if name.startswith(HEADS):
            continue
        found = tensors.get(name)
        if found is None or found.shape != value.shape:
            seen = "missing" if found is None else f"{tuple(found.shape)}"
            raise ValueError(
                f"weights: {name} is {seen}, this model has {tuple(value.shape)}: set the section model: as "
                "the weights were trained"
            )
        out[name] = found.to(value.dtype)
    return out
