"""The model card of an exported encoder: recipe, data, curve, and what probes found."""

from typing import Any

import yaml

from stages.evaluate.provenance import data_statement
from stages.evaluate.run import TrainedRun
from stages.pretrain.model.hubert import expresses
from stages.signal.rates import RATE_HZ

CURVE_ROWS = 12
PROBES = "probe/table.md"  # below RUN, as `overtone probe` writes it


def card(run: TrainedRun) -> str:
    model, data = run.model, run.data
    codes = "\n".join(
        f"| `{c['name']}` | {c['codebooks']} × {c['size']} codes | {RATE_HZ / c['hop_samples']:g} Hz |"
        for c in data["codes"]
    )
    cqt = f"| CQT | {data['cqt_bins']} bins | 75 Hz |" if data.get("cqt_bins") else ""
    musical = (run.config.get("objective") or {}).get("musical")
    cqt += f"\n| of the CQT | {', '.join(musical)} | |" if musical else ""
    names = ("model", "objective", "masking", "mixture", "optim")
    recipe = {name: run.config[name] for name in names if name in run.config}
    probes = run.path / PROBES
    found = f"\n## Probes\n\n{probes.read_text().strip()}\n" if probes.exists() else ""
    trust = "" if expresses(model) else ", trust_remote_code=True"
    picture = "![training curves](curves.png)\n\n" if (run.path / "curves.png").exists() else ""
    return f"""---
library_name: transformers
pipeline_tag: feature-extraction
tags: [music, audio, mert, hubert]
---
# {run.config.get("run", {}).get("name", run.path.name)}

A music encoder pre-trained as MERT (arXiv 2306.00107):
{model.layers} layers of {model.width}, {model.norm}-norm, `{model.front_end}` front-end.
It takes mono audio at {RATE_HZ} Hz, not normalised, and gives {RATE_HZ / model.hop_samples:g} frames
a second.
Checkpoint `{run.checkpoint}`.

```python
from transformers import AutoFeatureExtractor, AutoModel
prepare = AutoFeatureExtractor.from_pretrained("this folder")
model = AutoModel.from_pretrained("this folder"{trust}).eval()
# waves: a list of float arrays, mono, at {RATE_HZ} Hz
inputs = prepare(waves, sampling_rate={RATE_HZ}, padding=True, return_tensors="pt")
hidden = model(**inputs, output_hidden_states=True).hidden_states
```

## Data

{data_statement(run)}

Fingerprint `{data.get("fingerprint", "unknown")}`. The model learnt to predict, on masked frames:

| column | labels | rate |
|---|---|---|
{codes}
{cqt}

## Training curve

{picture}{curve(run.metrics)}
{found}
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
