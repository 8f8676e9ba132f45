"""A trained encoder as the files of a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from stages.evaluate.card import card
from stages.evaluate.run import TrainedRun
from stages.pretrain.model.hubert import expresses, hubert_config, to_hubert
from stages.pretrain.model.own_layout import MODELLING, own_config, own_weights
from stages.signal.rates import RATE_HZ

# raw mono samples, full scale ±1, not normalised: stated because readers' defaults differ
PREPROCESSOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": RATE_HZ,
    "padding_value": 0.0,
    "padding_side": "right",
    "do_normalize": False,
    "return_attention_mask": True,
}


def files(run: TrainedRun) -> dict[str, bytes]:
    """File name → bytes: HuBERT's layout where it expresses the model, else ours, with its modelling file."""
    out = {"preprocessor_config.json": _json(PREPROCESSOR), "README.md": card(run).encode()}
    if expresses(run.model):
        about, weights = hubert_config(run.model), to_hubert(run.weights)
    else:
        about, weights = own_config(run.model), own_weights(run.model, run.weights)
        out[f"{MODELLING}.py"] = Path(__file__).with_name(f"{MODELLING}.py").read_bytes()
    out |= {"config.json": _json(about), "model.safetensors": save(weights, {"format": "pt"})}
    curves = run.path / "curves.png"
    return out | ({"curves.png": curves.read_bytes()} if curves.exists() else {})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
