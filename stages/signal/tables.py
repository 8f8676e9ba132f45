"""Computed tables kept on disk: a file of arrays that is whole or not used."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages.shards.storage import Storage

_SHA_BYTES = 32


def table_cache() -> Path:
    """Folder of tables for all runs on a machine: $XDG_CACHE_HOME/overtone, else ~/.cache/overtone."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overtone"


def read(path: Path) -> Mapping[str, np.ndarray] | None:
    """The arrays that `write` stored at `path`; None where there is no file, or a damaged one."""
    stored = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(stored[_SHA_BYTES:]).digest() != stored[:_SHA_BYTES]:
        return None
    return np.load(io.BytesIO(stored[_SHA_BYTES:]), allow_pickle=False)


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """sha256, then an npz; whole or not at all, with any number of workers. Raises OSError."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    Storage(path.parent).write(path.name, hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())
