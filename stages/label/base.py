"""The contract of a labelling stage and of a teacher, on one screen.

A stage is a frozen dataclass: its fields are its recipe. For each input recording it yields
samples, then exactly one outcome: `Kept`, or `Rejected` with a reason. Samples that precede a
`Rejected` are taken back by the writer, so kept + rejected = inputs, always.

Shapes: N samples at 24 kHz, T frames at 75 Hz (hop 320), K codebooks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

RATE_HZ = 24_000  # M config/pretrain: MERT reads 24 kHz mono
HOP_SAMPLES = 320  # 75 label frames a second


class ReadError(Exception):
    """Bytes could not be read (disk, NFS, S3, memory): says nothing about the recording itself.

    It fails the shard, which is run again; only errors about bytes that were read reject."""


@dataclass(frozen=True)
class Sample:
    """One segment's members of one column: `members` maps an extension to bytes."""

    key: str
    members: dict[str, bytes]
    row: dict[str, Any]  # identity and shape: recording, start, samples, frames
    stats: dict[str, Any] = field(default_factory=dict)
    # added up over the shard: name → (levels, values)
    sums: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    recording: str
    note: dict[str, Any] = field(default_factory=dict)  # facts of the recording, to its stats rows


@dataclass(frozen=True)
class Rejected:
    recording: str
    reason: str


Item = Sample | Kept | Rejected


@dataclass(frozen=True)
class Needs:
    """What one worker of a stage reserves."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 2.0


class Stage(Protocol):
    name: ClassVar[str]
    version: ClassVar[int]
    reads: ClassVar[tuple[str, ...]]  # kinds of columns
    writes: ClassVar[str]  # kind of column
    # CPU seconds that a second of audio costs, about (D make bench-labels); only shares CPUs out
    cpu_s: float

    def open(self, weights: bytes | None, device: str, threads: int) -> Callable[[Any], Iterator[Item]]:
        """Load models once per worker; what comes back takes one shard's inputs."""
        ...


class Wave(Protocol):
    """One uninterrupted recording, read by positions. Outside [0, samples) it is zero."""

    samples: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """float32 (stop - start,), full scale ±1; raises `ReadError`."""
        ...


class Teacher(Protocol):
    """Names codes for a recording. Weights are canonical safetensors bytes: their sha256 is identity.

    A teacher has `fit` (codebooks from one's own corpus), or `locate` (published weights), or neither.
    What the trainer must know of its codes is written to each record's facts, and read there alone:
    codebooks, codebook_size, hop_samples (320, of a stored row), teacher_hop_samples.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    codebooks: int  # K
    codebook_size: int  # at most 65,536
    # hop_samples: int = 320, between two codes; a multiple of 320. Rows are always 75 a second, in every
    # column: the codes stage writes a slower teacher's code into each row it covers.

    def open(
        self, weights: bytes | None, device: str, threads: int
    ) -> Callable[[Wave], Iterator[np.ndarray]]:
        """The labeller yields consecutive uint16 (t, K) blocks, in all ≥ ceil(floor(samples / 320) · 320 /
        hop_samples).

        It takes samples by `stages.label.hearing.hear`, whose ValueError rejects the recording.
        """
        ...
