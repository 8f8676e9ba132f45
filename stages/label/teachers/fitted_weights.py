"""How fitted teachers are kept: canonical safetensors bytes with one note, the identity. The worker that
reads them has compared their sha256 before (`stages/label/shard.py`)."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]
LEVEL = ("codebook", "in_w", "in_b", "out_w", "out_b")  # of Mel-RVQ


def levels(tensors: dict) -> Iterator[tuple]:
    """Each level's own, in the order of `LEVEL`."""
    return zip(*(tensors[key] for key in LEVEL), strict=True)


def identity(recipe: Any, names: tuple[str, ...]) -> str:
    """The part of a recipe that its weights depend on."""
    return json.dumps({name: getattr(recipe, name) for name in ("version", *names)}, sort_keys=True)


def pack(teacher: str, identity: str, arrays: dict[str, np.ndarray], shapes: Shapes) -> bytes:
    from safetensors.numpy import save

    assert {key: a.shape for key, a in arrays.items()} == shapes
    # One metadata key: safetensors writes several in no fixed order.
    return save({key: np.ascontiguousarray(a) for key, a in arrays.items()}, metadata={teacher: identity})


def unpack(teacher: str, identity: str, weights: bytes | None, shapes: Shapes) -> dict[str, np.ndarray]:
    """The arrays; ValueError when they are missing, damaged or another recipe's."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if weights is None:
        raise ValueError(f"{teacher}: no weights were given; fit this teacher first")
    try:
        arrays = load(weights)
    except SafetensorError as error:
        try:
            end, tensors = _header(weights)
            ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
            announced = f" of {end + max(ends)} announced"
        except (struct.error, ValueError, KeyError, TypeError, AttributeError):
            announced = ""
        raise ValueError(
            f"{teacher}: the weights ({len(weights)} bytes{announced}) are no whole safetensors file "
            f"({error}); fit or copy them again"
        ) from error
    found = _header(weights)[1].get("__metadata__", {}).get(teacher)
    if found != identity:
        raise ValueError(
            f"{teacher}: the weights were fitted for {found}, the recipe says {identity}; fit again or "
            f"restore the recipe"
        )
    for key, shape in shapes.items():
        seen = (arrays[key].dtype.name, arrays[key].shape) if key in arrays else "missing"
        if seen != ("float32", shape):
            raise ValueError(f"{teacher}: tensor {key} is {seen}, expected ('float32', {shape}); fit again")
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{teacher}: tensor {key} holds NaN or infinity; fit again")
    return arrays


def _header(weights: bytes) -> tuple[int, dict]:
    """(where the tensors begin, the header)."""
    end = 8 + struct.unpack("<Q", weights[:8])[0]
    return end, json.loads(weights[8:end])
