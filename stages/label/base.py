"""The contract of a labelling stage and of a teacher.

A stage is a frozen dataclass: its fields are its recipe. For each recording it yields samples, then exactly
one outcome: `Kept`, or `Rejected` with a reason, which removes the samples before it. N samples at 24 kHz, T
frames at 75 Hz (hop 320), K codebooks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from stages.signal.rates import HOP_SAMPLES as HOP_SAMPLES
from stages.signal.rates import RATE_HZ as RATE_HZ


class RejectRecording(ValueError):
    """The decoder's or a teacher's reason why this recording cannot be labelled, for people to read. Nothing
    else rejects one: any other exception is a defect or a read error, and fails the shard."""


class ReadError(Exception):
    """Bytes could not be read (disk, NFS, S3, memory): fails the shard, which is run again."""


class TeacherError(RuntimeError):
    """The teacher's codes are wrong for any recording: the run ends."""


@dataclass(frozen=True)
class Sample:
    """One segment of one column."""

    key: str
    members: dict[str, bytes]  # by extension
    row: dict  # identity and shape: recording, start, samples, frames
    stats: dict = field(default_factory=dict)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)  # name → (levels, values), to be added up


@dataclass(frozen=True)
class Kept:
    recording: str
    note: dict = field(default_factory=dict)  # facts of the recording, for its statistics rows


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
    writes: ClassVar[str]  # kind of column
    cpu_s: float  # CPU seconds for a second of audio, about (D make bench-labels); only divides the CPUs

    def open(self, weights: bytes | None, device: str, threads: int) -> Callable[[Any], Iterator[Item]]:
        """Once per worker; the returned callable takes one shard's inputs.

        It may have `facts()` for the shard's record, and `run_facts()` for that record's `run`."""
        ...


class Wave(Protocol):
    """One uninterrupted recording. Outside [0, samples) it is zero."""

    samples: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """float32 (stop - start,), full scale ±1; raises `ReadError`."""
        ...


# Yields consecutive uint16 (t, K) blocks, at least ceil(floor(samples / 320) · 320 / hop_samples) frames in
# all. It reads samples with `read_checked`; `RejectRecording`, and nothing else, rejects the recording.
LabelFunction = Callable[[Wave], Iterator[np.ndarray]]


class Teacher(Protocol):
    """Gives codes for a recording. Weights are canonical safetensors bytes, identified by their sha256.

    A teacher has `fit` (codebooks from the user's corpus), or `locate` (published weights), or neither."""

    name: ClassVar[str]
    version: ClassVar[int]
    codebooks: int  # K
    codebook_size: int  # at most 65,536
    # hop_samples: int = 320, between two codes; a multiple of 320. Every column has 75 rows a second:
    # the codes stage repeats a slower teacher's code in each row that it covers.

    def open(self, weights: bytes | None, device: str, threads: int) -> LabelFunction:
        """Once per worker. ValueError: weights that are missing, damaged or of another recipe."""
        ...


def read_checked(wave: Wave, start: int, stop: int) -> np.ndarray:
    """`wave.read(start, stop)`, float32 (stop - start,) of finite samples; else `RejectRecording` names the
    rate, the channels, the dtype or the first sample that is NaN or infinite."""
    rate_hz, problem = getattr(wave, "rate_hz", RATE_HZ), None
    if rate_hz != RATE_HZ:
        problem = f"sample rate {rate_hz} Hz: teachers take {RATE_HZ}; resample it (the decode stage does)"
    elif (sound_N := wave.read(start, stop)).ndim != 1:
        shape = f"{sound_N.ndim} dimensions, shape {sound_N.shape}"
        problem = f"{shape}: teachers take one channel; mix it to mono"
    elif sound_N.dtype != np.float32:
        problem = f"dtype {sound_N.dtype}: teachers take float32 at full scale ±1; convert and scale it"
    elif not (finite := np.isfinite(sound_N)).all():
        at = start + int(np.flatnonzero(~finite)[0])
        problem = f"samples: NaN or infinity first at sample {at}; leave this recording out or repair it"
    if problem:
        raise RejectRecording(problem)
    return sound_N


def cut(blocks: Iterable[np.ndarray], segments: list[dict]) -> Iterator[tuple[dict, np.ndarray]]:
    """Each segment with its frames (T, C), T = floor(samples / 320), of consecutive blocks (t, C).

    Segments start on multiples of 320, so none share a frame. RuntimeError when there are too few frames."""
    source, held, have = iter(blocks), [], 0
    for segment in segments:
        count = segment["samples"] // HOP_SAMPLES
        while have < count:
            if (block := next(source, None)) is None:
                name = segment["recording"]
                raise RuntimeError(f"{name}: the teacher gave {have} frames, {count} are needed")
            held.append(block)
            have += len(block)
        joined = held[0] if len(held) == 1 else np.concatenate(held)
        yield segment, joined[:count]
        held, have = [joined[count:]], have - count


def outcomes(
    waves: Iterable[Any],
    blocks: Callable[[Any], Iterable[np.ndarray]],
    described: Callable[[np.ndarray, int], tuple],
) -> Iterator[Item]:
    """Each recording's samples and outcome.

    described: members, statistics and histograms of a segment's frames and its number."""
    for wave in waves:
        try:
            for number, (segment, frames_TC) in enumerate(cut(blocks(wave), wave.segments)):
                row = {name: segment[name] for name in ("recording", "start", "samples", "frames")}
                members, stats, histograms = described(frames_TC, number)
                yield Sample(segment["key"], members, row, stats, histograms)
        except RejectRecording as refused:
            yield Rejected(wave.recording, str(refused))
        else:
            yield Kept(wave.recording)
