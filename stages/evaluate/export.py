"""A trained encoder as the files of a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from stages.evaluate.run import TrainedRun
from stages.pretrain.model.hubert import expresses, hubert_config, to_hubert
from stages.pretrain.model.own_layout import MODELLING, own_config, own_weights
from stages.signal.rates import RATE_HZ

CURVE_ROWS = 12
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


def card(run: TrainedRun) -> str:
    model, data = run.model, run.data
    codes = "\n".join(
        f"| `{c['name']}` | {c['codebooks']} × {c['size']} codes | {RATE_HZ / c['hop_samples']:g} Hz |"
        for c in data["codes"]
    )
    cqt = f"| CQT | {data['cqt_bins']} bins | 75 Hz |" if data.get("cqt_bins") else ""
    names = ("model", "objective", "masking", "mixture", "optim")
    recipe = {name: run.config[name] for name in names if name in run.config}
    hours = ""
    if "hours" in data:
        hours = f"{data['hours']:.2f} hours for training, {data.get('valid_hours', 0):.2f} held out. "
    picture = "![training curves](curves.png)\n\n" if (run.path / "curves.png").exists() else ""
    return f"""---
library_name: transformers
pipeline_tag: feature-extraction
tags: [music, audio, mert, hubert]
---
# {run.config.get("run", {}).get("name", run.path.name)}

A music encoder pre-trained as MERT (arXiv 2306.00107):
{model.layers} layers of {model.width}, {model.norm}-norm.
It takes mono audio at {RATE_HZ} Hz, not normalised, and gives 75 frames a second.
Checkpoint `{run.checkpoint}`.

```python
from transformers import AutoModel
model = AutoModel.from_pretrained("this folder")
# wave_BN: float (clips, samples) at {RATE_HZ} Hz
hidden = model(wave_BN, output_hidden_states=True).hidden_states
```

## Data

{hours}Fingerprint `{data.get("fingerprint", "unknown")}`. The model learnt to predict, on masked frames:

| column | labels | rate |
|---|---|---|
{codes}
{cqt}

## Training curve

{picture}{curve(run.metrics)}

## Recipe

```yaml
{yaml.safe_dump(recipe, sort_keys=False).rstrip()}
```
"""


def curve(metrics: list[dict[str, Any]]) -> str:
    """A dozen updates, evenly spread: training loss, and held-out loss where there is one."""
    losses, held_out = (
        {row["update"]: row.get("loss") for row in metrics if row.get("kind") == kind and "update" in row}
        for kind in ("update", "valid")
    )
    if not losses:
        return "No update was recorded."
    updates = sorted(losses)
    spread = {updates[round(i * (len(updates) - 1) / (CURVE_ROWS - 1))] for i in range(CURVE_ROWS)}
    chosen = sorted(spread | set(sorted(held_out)[-CURVE_ROWS:]))
    lines = [f"| {u} | {_number(losses.get(u))} | {_number(held_out.get(u))} |" for u in chosen]
    return "\n".join(["| update | loss a masked frame | held out |", "|---|---|---|", *lines])


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else ""


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
