"""Models from their folders: a training RUN, or Hugging Face's layout, exported or published."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from stages import config
from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.backbone import Backbone
from stages.pretrain.model.config import Model
from stages.pretrain.model.hubert import from_hubert, model_of
from stages.pretrain.model.mert import Mert
from stages.pretrain.model.objective import Objective
from stages.pretrain.model.own_layout import KIND, from_own, own_model
from stages.pretrain.model.weight_files import read, tensors
from stages.pretrain.run.rows import renamed
from stages.shards.storage import Storage


@dataclass(frozen=True)
class TrainedRun:
    path: Path
    config: dict[str, Any]  # config.yaml, whole
    data: dict[str, Any]
    checkpoint: str
    weights: dict[str, Tensor]  # fp32
    metrics: list[dict[str, Any]]  # metrics.jsonl up to this checkpoint's end of file

    @property
    def model(self) -> Model:
        return config.build(Model, self.config["model"], "model")

    def mert(self) -> Mert:
        """On the CPU, in evaluation mode."""
        codes = tuple(CodeColumn(**column) for column in self.data["codes"])
        objective = config.build(Objective, self.config["objective"], "objective")
        octave = (self.data.get("cqt") or {}).get("bins_per_octave", 48)
        net = Mert(self.model, objective, codes, self.data["cqt_bins"], octave)
        net.load_state_dict(self.weights, strict=True)
        return net.eval()


def open_run(place: str | Path, checkpoint: str = "latest") -> TrainedRun:
    """`checkpoint`: `latest`, `best` (by held-out loss) or a folder. Raises ValueError."""
    path = Path(place)
    try:
        settings = yaml.safe_load((path / "config.yaml").read_text())
        data = json.loads((path / "data.json").read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"RUN {path} cannot be read ({error}): name the folder of a training run") from None
    at = (settings.get("checkpoints") or {}).get("at") or str(path / "checkpoints")
    storage = Storage(at)
    try:
        name = storage.read(checkpoint).decode().strip() if checkpoint in ("latest", "best") else checkpoint
        weights = load(storage.read(f"{name}/model.safetensors"))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"RUN {path}: checkpoint {checkpoint!r} in {at} cannot be read ({error}); there may be none yet"
        ) from None
    metrics = path / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    rows = [renamed(json.loads(line)) for line in lines if line.endswith("}")]
    return TrainedRun(path, settings, data, name, weights, rows)


def open_backbone(place: str | Path, checkpoint: str = "latest") -> Backbone:
    """A RUN's or a Hugging Face folder's encoder, in evaluation mode, fp32 on the CPU. Raises ValueError."""
    path = Path(place)
    if (path / "config.yaml").exists():
        return open_run(path, checkpoint).mert()
    if not (path / "config.json").exists():
        raise ValueError(
            f"{path} has neither config.yaml (a training RUN) nor config.json (an exported model)"
        )
    found, about = read(path)
    own = about.get("model_type") == KIND
    with torch.device("meta"):
        net = Backbone(own_model(about) if own else model_of(about))
    state = (from_own if own else from_hubert)(tensors(found), net.state_dict())
    net.load_state_dict(state, strict=True, assign=True)
    return net.float().eval()
