"""Recordings of one shard's audio column, read by positions: what the teachers listen to."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.shards.column import WAV_HEADER_BYTES


@dataclass
class ShardWave:
    """One uninterrupted recording as stored: 16-bit segments inside a tar on a local disk."""

    path: Path
    recording: str
    segments: list[dict]  # index rows of the recording, ascending
    samples: int = field(init=False)
    _cached: tuple[int, np.ndarray] | None = field(default=None, init=False)

    def __post_init__(self):
        last = self.segments[-1]
        self.samples = last["start"] + last["samples"]

    def read(self, start: int, stop: int) -> np.ndarray:
        """float32 (stop - start,), full scale ±1, zero outside the recording."""
        out = np.zeros(stop - start, dtype=np.float32)
        for number, segment in enumerate(self.segments):
            first = max(start, segment["start"])
            last = min(stop, segment["start"] + segment["samples"])
            if first < last:
                stored = self._int16(number, first - segment["start"], last - segment["start"])
                out[first - start : last - start] = stored
        out /= 32768.0
        return out

    def _int16(self, number: int, first: int, last: int) -> np.ndarray:
        segment = self.segments[number]
        if segment["member"] == "wav":
            with open(self.path, "rb") as f:
                f.seek(segment["offset"] + WAV_HEADER_BYTES + 2 * first)
                return np.frombuffer(f.read(2 * (last - first)), dtype="<i2")
        if self._cached is None or self._cached[0] != number:
            import soundfile

            with open(self.path, "rb") as f:
                f.seek(segment["offset"])
                data = io.BytesIO(f.read(segment["size"]))
            self._cached = (number, soundfile.read(data, dtype="int16")[0])
        return self._cached[1][first:last]


def waves(path: Path, index: pa.Table) -> Iterator[ShardWave]:
    """The recordings of an audio tar in key order; `path` is a local copy of the tar."""
    rows: list[dict] = []
    for row in index.to_pylist():
        if rows and rows[-1]["recording"] != row["recording"]:
            yield ShardWave(path, rows[0]["recording"], rows)
            rows = []
        rows.append(row)
    if rows:
        yield ShardWave(path, rows[0]["recording"], rows)
