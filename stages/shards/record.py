"""A record: the JSON next to a tar that states that the shard is finished, its contents and origin.

It is written last. All of it but `run` depends only on the inputs, the recipe, the kind of device and the
software versions; `run` (host, times, slowest recordings, how a teacher compared) may differ between runs."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from stages.shards.storage import Storage

FORMAT = 1
UPGRADE = "use the version of overtone that wrote it, or a newer one; nothing was changed"


class UnknownFormat(OSError):
    """A record that another version wrote. It cannot be read, which is no damage: it is never made again."""


@dataclass(frozen=True)
class Record:
    shard: str
    column: str
    recipe: dict
    inputs: int
    kept: int
    rejects: list[dict[str, str]]  # recording, path, reason
    segments: int
    samples: int
    frames: int
    bytes: int
    sha256: str  # of the tar
    source_sha256: str | None  # of the audio tar the labels were made from
    software: dict[str, str]
    device: str
    beside_sha256: dict[str, str] = field(default_factory=dict)  # of the index, statistics and histograms
    facts: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        data = asdict(self)
        return (json.dumps(data | {"record_sha256": _digest(data)}, indent=1, sort_keys=True) + "\n").encode()


def _digest(data: dict) -> str:
    own = {k: v for k, v in data.items() if k != "run"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def parse(data: bytes, name: str) -> Record:
    """ValueError when it is not a record, or not as it was written; UnknownFormat for that of another
    version, whatever its fields are."""
    try:
        fields = json.loads(data)
        noted, seen = fields.pop("record_sha256", None), fields.get("format")
        if isinstance(seen, int) and seen != FORMAT:
            raise UnknownFormat(f"{name} has format {seen}; this version reads {FORMAT}: {UPGRADE}")
        record = Record(**fields)
    except UnknownFormat:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} is not a record ({error})") from None
    if noted != (seen := _digest(fields)):
        raise ValueError(
            f"{name} is damaged: its fields have sha256 {seen[:12]}…, it says {str(noted)[:12]}…"
        )
    return record


def folder(column: str) -> str:
    return f"columns/{column}"


def file(column: str, shard: str, kind: str) -> str:
    """kind: tar | json | index.parquet | stats.parquet | sums.parquet"""
    return f"{folder(column)}/{shard}.{kind}"


def read(storage: Storage, column: str, shard: str) -> Record:
    name = file(column, shard, "json")
    return parse(storage.read(name), storage.path(name))


def finished(storage: Storage, column: str) -> set[str]:
    """A column's shards with a record and a tar, from one listing."""
    names = storage.names(folder(column))
    return {n[:-5] for n in names if n.endswith(".json") and f"{n[:-5]}.tar" in names}


def discard(storage: Storage, column: str, shard: str) -> None:
    """Delete a shard of a column. Its marks go first: the notes that it was audited, and its record."""
    for columns in storage.names("audited"):
        storage.delete(f"audited/{columns}/{shard}.json")
    for kind in ("json", "tar", "index.parquet", "stats.parquet", "sums.parquet"):
        storage.delete(file(column, shard, kind))


def canonical(value: Any, where: str = "recipe") -> Any:
    """Plain JSON data, or ValueError with the path of a field that cannot be hashed stably."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: it has no stable hash")
        return int(value) if value.is_integer() else value
    if isinstance(value, list | tuple):
        return [canonical(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, dict):
        return {str(k): canonical(v, f"{where}.{k}") for k, v in sorted(value.items())}
    raise ValueError(f"{where} is a {type(value).__name__}: it has no stable hash")


def recipe8(recipe: dict) -> str:
    """The first 8 hex digits of a recipe's sha256, for column names."""
    text = json.dumps(canonical(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
