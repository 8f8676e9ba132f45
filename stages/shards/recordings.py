"""Recordings of one shard's audio column, read by positions."""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.shards.column import WAV_HEADER_BYTES
from stages.signal.rates import RATE_HZ

HEADER = struct.Struct("<22xHI6xH8x")  # of a wav: channels, samples a second, bits a sample


@dataclass
class StoredRecording:
    """One uninterrupted recording as stored: 16-bit segments inside a tar on a local disk."""

    path: Path
    recording: str
    segments: list[dict]  # index rows of the recording, ascending
    arrived: Callable[[int], None] = lambda end: None  # waits for the tar's first `end` bytes
    rate_hz: int = RATE_HZ
    _cached: tuple[int, np.ndarray] | None = None

    @property
    def samples(self) -> int:
        return self.segments[-1]["start"] + self.segments[-1]["samples"]

    def read(self, start: int, stop: int) -> np.ndarray:
        """float32 (stop - start,), full scale ±1, zero outside the recording. ValueError unless stored as 24
        kHz mono, 16 bits."""
        out = np.zeros(stop - start, dtype=np.float32)
        for number, segment in enumerate(self.segments):
            begin = segment["start"]
            first, last = max(start, begin), min(stop, begin + segment["samples"])
            if first < last:
                out[first - start : last - start] = self._int16(number, first - begin, last - begin)
        return out / 32768

    def _int16(self, number: int, first: int, last: int) -> np.ndarray:
        segment = self.segments[number]
        offset, size = segment["offset"], segment["size"]
        self.arrived(offset + size)
        if segment["member"] == "wav":
            with open(self.path, "rb") as f:
                f.seek(offset)
                channels, rate_hz, bits = HEADER.unpack(f.read(WAV_HEADER_BYTES))
                _check(segment["key"], rate_hz, channels, f"{bits} bits")
                f.seek(offset + WAV_HEADER_BYTES + 2 * first)
                return np.frombuffer(f.read(2 * (last - first)), dtype="<i2")
        if self._cached is None or self._cached[0] != number:
            import soundfile

            with open(self.path, "rb") as f:
                f.seek(offset)
                data = io.BytesIO(f.read(size))
            with soundfile.SoundFile(data) as sound:
                depth = "16 bits" if sound.subtype == "PCM_16" else sound.subtype
                _check(segment["key"], sound.samplerate, sound.channels, depth)
                self._cached = (number, sound.read(dtype="int16"))
        return self._cached[1][first:last]


def _check(key: str, rate_hz: int, channels: int, depth: str) -> None:
    """Refuse a segment that no decode stage wrote: it would be read wrongly and labelled so."""
    if (rate_hz, channels, depth) != (RATE_HZ, 1, "16 bits"):
        raise ValueError(
            f"{key} is stored at {rate_hz} Hz, {channels} channels, {depth}: labels are of {RATE_HZ} Hz, "
            f"1 channel, 16 bits; decode it again"
        )


def stored_recordings(
    path: Path, index: pa.Table, arrived: Callable[[int], None] = lambda end: None
) -> Iterator[StoredRecording]:
    """The recordings of an audio tar in key order; `path`, `arrived`: from `Storage.arriving`."""
    for recording, rows in groupby(index.to_pylist(), key=itemgetter("recording")):
        yield StoredRecording(path, recording, list(rows), arrived)
