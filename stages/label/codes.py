"""The codes stage: a teacher's codes over each uninterrupted recording, cut to its segments.

Writes uint16 (T, K) at 75 Hz. The teacher reads the audio as stored, so labels are of what is trained on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.label.base import Item, Teacher, outcomes
from stages.label.statistics.codes import of_codes
from stages.shards.column import npy_bytes
from stages.signal.rates import HOP_SAMPLES


@dataclass(frozen=True)
class Codes:
    teacher: Teacher

    name = "codes"
    version = 1
    writes = "codes"

    @property
    def cpu_s(self) -> float:
        return getattr(self.teacher, "cpu_s", 0.02)

    def open(self, weights: bytes | None, device: str, threads: int) -> "CodesRun":
        return CodesRun(self.teacher, self.teacher.open(weights, device, threads))


@dataclass
class CodesRun:
    """One worker's labeller."""

    teacher: Teacher
    label: Callable[[Any], Iterator[np.ndarray]]

    def __call__(self, waves: Iterable[Any]) -> Iterator[Item]:
        if hasattr(self.label, "restart_facts"):
            self.label.restart_facts()
        yield from outcomes(waves, lambda wave: map(self._rows, self.label(wave)), self._described)

    def _described(self, codes_TK: np.ndarray, number: int) -> tuple:
        stats, counts_KC = of_codes(codes_TK, self.teacher.codebook_size)
        return {"codes.npy": npy_bytes(codes_TK)}, stats, {"codes": counts_KC}

    def facts(self) -> dict:
        """As in `stages/shards/frames.py`, and what the labeller itself has measured."""
        teacher, own = self.teacher, self.label.facts() if hasattr(self.label, "facts") else {}
        shape = {"codebooks": teacher.codebooks, "codebook_size": teacher.codebook_size}
        return own | shape | {"hop_samples": HOP_SAMPLES, "teacher_hop_samples": hop_samples(teacher)}

    def run_facts(self) -> dict:
        return self.label.run_facts() if hasattr(self.label, "run_facts") else {}

    def _rows(self, codes_TK: np.ndarray) -> np.ndarray:
        """A slower teacher's code in each row it covers; RuntimeError, which fails the shard, where a teacher
        breaks its contract."""
        name, books, size = self.teacher.name, self.teacher.codebooks, self.teacher.codebook_size
        if codes_TK.dtype != np.uint16 or codes_TK.ndim != 2 or codes_TK.shape[1] != books:
            seen = f"{codes_TK.dtype} {codes_TK.shape}"
            raise RuntimeError(f"teacher {name} gave {seen}, expected uint16 (t, {books})")
        if codes_TK.size and codes_TK.max() >= size:
            raise RuntimeError(f"teacher {name} gave code {codes_TK.max()}, its codebooks have {size}")
        return np.repeat(codes_TK, hop_samples(self.teacher) // HOP_SAMPLES, axis=0)


def hop_samples(teacher: Teacher) -> int:
    """Samples between a teacher's codes: 320 unless it has `hop_samples`."""
    return getattr(teacher, "hop_samples", HOP_SAMPLES)
