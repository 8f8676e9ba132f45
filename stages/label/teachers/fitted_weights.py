"""The one form in which fitted teachers are kept: canonical safetensors bytes with one note, and their
refusal.

The note is the part of the recipe that the weights depend on. Where the bytes come from a file, the
worker that reads it has compared its sha256 before (`stages/label/shard.py`, which names the path).
"""

import json
import struct

import numpy as np

Shapes = dict[str, tuple[int, ...]]


def pack(teacher: str, identity: str, arrays: dict[str, np.ndarray], shapes: Shapes) -> bytes:
    """float32 arrays of exactly these shapes as bytes; the same arrays give the same bytes."""
    from safetensors.numpy import save

    assert {key: a.shape for key, a in arrays.items()} == shapes
    # One metadata key only: safetensors writes several in no fixed order.
    return save({key: np.ascontiguousarray(a) for key, a in arrays.items()}, metadata={teacher: identity})


def unpack(teacher: str, identity: str, weights: bytes | None, shapes: Shapes) -> dict[str, np.ndarray]:
    """The arrays; ValueError with both values when there are none, or damaged, or another recipe's."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if weights is None:
        raise ValueError(f"{teacher}: no weights were given; fit this teacher first")
    try:
        arrays = load(weights)
    except SafetensorError as error:
        raise ValueError(
            f"{teacher}: the weights ({len(weights)} bytes{_announced(weights)}) are no whole "
            f"safetensors file ({error}); fit again or copy them again"
        ) from error
    (header_bytes,) = struct.unpack("<Q", weights[:8])
    found = json.loads(weights[8 : 8 + header_bytes]).get("__metadata__", {}).get(teacher)
    if found != identity:
        raise ValueError(
            f"{teacher}: the weights were fitted for {found}, the recipe says {identity}; fit again "
            f"or restore the recipe"
        )
    for key, shape in shapes.items():
        seen = (arrays[key].dtype.name, arrays[key].shape) if key in arrays else "missing"
        if seen != ("float32", shape):
            raise ValueError(f"{teacher}: tensor {key} is {seen}, expected ('float32', {shape}); fit again")
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{teacher}: tensor {key} holds NaN or infinity; fit again")
    return arrays


def _announced(weights: bytes) -> str:
    """How long the header says the file should be, where it can be read."""
    try:
        (header_bytes,) = struct.unpack("<Q", weights[:8])
        tensors = json.loads(weights[8 : 8 + header_bytes])
        ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
        return f" of {8 + header_bytes + max(ends)} announced"
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return ""
