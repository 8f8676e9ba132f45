"""The codes stage: a teacher's codes over each uninterrupted recording, cut to its segments.

Writes uint16 (T, K) at 75 Hz. The teacher sees the audio as stored, so labels belong to what is trained on.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stages.label.base import Item, Kept, Rejected, Sample, Teacher
from stages.label.segments import cut, identity
from stages.shards.column import npy_bytes


@dataclass(frozen=True)
class Codes:
    teacher: Teacher

    name: ClassVar[str] = "codes"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("audio",)
    writes: ClassVar[str] = "codes"

    @property
    def cpu_s(self) -> float:
        return getattr(self.teacher, "cpu_s", 0.02)

    def open(self, weights: bytes | None, device: str, threads: int) -> Callable[[Iterable[Any]], Iterator[Item]]:
        label = self.teacher.open(weights, device, threads)

        def run(waves: Iterable[Any]) -> Iterator[Item]:
            for wave in waves:
                try:
                    for segment, codes_TK in cut(label(wave), wave.segments):
                        yield Sample(segment["key"], {"codes.npy": npy_bytes(codes_TK)}, identity(segment),
                                     self._stats(codes_TK))
                except ValueError as error:  # the teacher's own refusal of this recording
                    yield Rejected(wave.recording, str(error))
                else:
                    yield Kept(wave.recording)

        return run

    def _stats(self, codes_TK: np.ndarray) -> dict:
        """Per level: entropy of the segment's codes in bits, and how many distinct ones it uses."""
        entropy, used = [], []
        for codes_T in codes_TK.T:
            counts = np.bincount(codes_T)
            share = counts[counts > 0] / max(len(codes_T), 1)
            entropy.append(float(-(share * np.log2(share)).sum()))
            used.append(len(share))
        return {"code_entropy_bits": entropy, "codes_used": used}
