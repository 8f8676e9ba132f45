"""Recordings that are the same music in other bytes, by the fingerprints gathered while labelling.

A fingerprint is 192 bits of a segment's chroma (`stages/label/statistics/pitch.py`); two encodes of the
same music differ in a few. Sorted by their bits from some bit on, near twins often become neighbours:
that is done for several first bits and each of a recording's first segments, so that one lucky stretch
of equal bits is enough. Neighbours are then compared in full.

Letters: R recordings, W words of 64 bits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.corpus import Corpus

BITS, WORDS = 192, 3
ROTATION_BITS = 16  # from one sorting's first bit to the next one's
NEIGHBOURS = 2  # each is compared with so many that follow it
SAME = 48  # bits of 192 that may differ in every segment two recordings share; unrelated music differs in about 96 (D)


@dataclass(frozen=True)
class Group:
    """Recordings of the same music, the longest first: that one is worth keeping."""

    recordings: tuple[str, ...]
    paths: tuple[str, ...]
    splits: tuple[str, ...]


def groups(corpus: Corpus) -> list[Group]:
    """Groups of near-duplicates in order of their first path; empty when no fingerprints were gathered."""
    prints = by_number(corpus)
    pairs = candidates(prints)
    if not len(pairs):
        return []
    linked = pairs[same(prints, pairs)]
    return _named(corpus, linked)


def by_number(corpus: Corpus) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per segment number: (recordings as int64 (R,), ascending; words (R, 3) uint64). Ids are 16 hex digits."""
    found = corpus.db.execute(
        'SELECT "index" AS number, (\'0x\' || recording)::UBIGINT AS recording, (\'0x\' || fingerprint[1:16])::UBIGINT AS a, '
        "('0x' || fingerprint[17:32])::UBIGINT AS b, ('0x' || fingerprint[33:48])::UBIGINT AS c FROM segments "
        "WHERE fingerprint IS NOT NULL ORDER BY number, recording").fetchnumpy()
    if not len(found["number"]):
        return []
    words = np.stack([found[name] for name in "abc"], 1)
    cuts = np.flatnonzero(np.diff(found["number"])) + 1
    return list(zip(np.split(found["recording"], cuts), np.split(words, cuts), strict=True))


def candidates(prints: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pairs (P, 2) of recordings whose bits are close in at least one segment, each pair once."""
    pairs = []
    for recordings_R, words_RW in prints:
        for first_bit in range(0, BITS, ROTATION_BITS):
            order = np.argsort(_from_bit(words_RW, first_bit))
            for step in range(1, NEIGHBOURS + 1):
                left, right = order[:-step], order[step:]
                close = _apart(words_RW[left], words_RW[right]) <= SAME
                pairs.append(np.stack([recordings_R[left[close]], recordings_R[right[close]]], 1))
    if not pairs:
        return np.zeros((0, 2), np.uint64)
    found = np.sort(np.concatenate(pairs), axis=1)
    return np.unique(found[found[:, 0] != found[:, 1]], axis=0)


def same(prints: list[tuple[np.ndarray, np.ndarray]], pairs: np.ndarray) -> np.ndarray:
    """Which pairs (P, 2) are close in every segment number that both have a fingerprint of: bool (P,)."""
    whole = np.ones(len(pairs), bool)
    for recordings_R, words_RW in prints:
        at = np.searchsorted(recordings_R, pairs).clip(max=len(recordings_R) - 1)
        both = (recordings_R[at] == pairs).all(1)
        whole &= ~both | (_apart(words_RW[at[:, 0]], words_RW[at[:, 1]]) <= SAME)
    return whole


def _from_bit(words_RW: np.ndarray, bit: int) -> np.ndarray:
    """The 64 bits that begin at `bit`, (R,); they go round."""
    word, shift = divmod(bit, 64)
    first, second = words_RW[:, word], words_RW[:, (word + 1) % WORDS]
    return first if not shift else (first << np.uint64(shift)) | (second >> np.uint64(64 - shift))


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b).sum(1)


def _named(corpus: Corpus, pairs: np.ndarray) -> list[Group]:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ids, at = np.unique(pairs, return_inverse=True)
    at = at.reshape(pairs.shape)
    graph = coo_matrix((np.ones(len(at), np.int8), (at[:, 0], at[:, 1])), shape=(len(ids), len(ids)))
    members: dict[int, list[dict[str, Any]]] = {}
    label = dict(zip((f"{i:016x}" for i in ids), connected_components(graph)[1].tolist(), strict=True))
    corpus.db.execute("CREATE OR REPLACE TEMP TABLE twins AS SELECT unnest(?::VARCHAR[]) AS recording", [list(label)])
    rows = corpus.rows("SELECT recording, coalesce(any_value(path), recording) AS path, coalesce(any_value(split), '') AS split, "
                       "sum(samples) AS samples FROM named SEMI JOIN twins USING (recording) GROUP BY recording "
                       "ORDER BY samples DESC, path, recording")
    for row in rows:
        members.setdefault(label[row["recording"]], []).append(row)
    found = [Group(*(tuple(row[name] for row in rows) for name in ("recording", "path", "split"))) for rows in members.values()]
    return sorted(found, key=lambda group: group.paths)
