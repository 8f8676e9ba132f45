"""Shared by the tests of teachers: the codes of one wave, and a fit that tells nobody how far it is."""

import numpy as np

from stages.label.base import Teacher, Wave


def labels(teacher: Teacher, weights: bytes | None, wave: Wave, **how) -> np.ndarray:
    """uint16 (T, K) of one recording by a freshly opened teacher."""
    blocks = list(teacher.open(weights, "cpu", 1)(wave, **how))
    return np.concatenate(blocks) if blocks else np.zeros((0, teacher.codebooks), np.uint16)


def quiet(_: dict) -> None: ...
