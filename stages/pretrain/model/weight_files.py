"""Weights from safetensors, and from PyTorch pickles, which may name any function to be called: tensors and
plain values are read, known classes of fairseq's become inert, and a file that names anything else is
refused."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

INERT_PACKAGES = ("fairseq", "omegaconf", "argparse", "numpy", "_codecs", "mert_fairseq", "enum")
# of a Hugging Face folder, the first that is there
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class Inert:
    """Takes anything, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read(place: str | Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Of a Hugging Face folder, a .safetensors or a PyTorch file (.bin, .pt), with the config.json next to it
    (None: there is none). Raises ValueError."""
    path = Path(place)
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).exists()]
        if not found:
            raise ValueError(
                f"weights {path}: expected {' or '.join(WEIGHT_FILES)} in it (a model in several files: "
                "merge it first)"
            )
        path = found[0]
    elif not path.exists():
        raise ValueError(f"weights {path}: there is no such file or folder")
    about = path.with_name("config.json")
    try:
        config = json.loads(about.read_text()) if about.exists() else None
        return load_file(path) if path.suffix == ".safetensors" else _pickle(path), config
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from None


def _pickle(path: Path) -> dict[str, Any]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, UnpicklingError) as error:
        raise ValueError(
            f"weights {path}: no PyTorch file of version 1.6 or later ({error}); save it again with a newer "
            "torch"
        ) from None
    strange = [name for name in names if name.split(".")[0] not in INERT_PACKAGES]
    if strange:
        raise ValueError(
            f"weights {path} would call {', '.join(sorted(strange))}: only tensors and plain values are "
            "read from a pickle; save its tensors as safetensors if you trust it"
        )
    with torch.serialization.safe_globals([(Inert, name) for name in names]):
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise ValueError(f"weights {path} holds {type(found).__name__}, expected a dictionary of tensors")
    return found


def tensors(found: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
