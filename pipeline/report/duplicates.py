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
import pyarrow as pa

from pipeline.report.corpus import Corpus

BITS, WORDS = 192, 3
ROTATION_BITS = 16  # from one sorting's first bit to the next one's
NEIGHBOURS = 2  # each is compared with so many that follow it
SEARCHED = 400_000  # fingerprints: all four of 100,000 recordings, only the first of more
# sorted in all, from each of twelve bits on; from fewer when there are more fingerprints
SORTED = 12 * SEARCHED
# bits of 192 that may differ in every segment two recordings share; unrelated music differs in about 96 (D)
SAME = 48


@dataclass(frozen=True)
class Group:
    """Recordings of the same music, the longest first: that one is worth keeping."""

    recordings: tuple[str, ...]
    paths: tuple[str, ...]
    splits: tuple[str, ...]


def groups(corpus: Corpus) -> list[Group]:
    """Groups of near-duplicates in order of their first path; empty when no fingerprints were gathered."""
    pairs = candidates(searched(corpus))
    if not len(pairs):
        return []
    linked = pairs[same(_all_of(corpus, np.unique(pairs)), pairs)]
    return _named(corpus, linked) if len(linked) else []


# per segment number: recordings uint64 (R,), ascending; words uint64 (R, 3)
Prints = list[tuple[np.ndarray, np.ndarray]]


def searched(corpus: Corpus) -> Prints:
    """Fingerprints of the first segments, of as many as `SEARCHED` allows."""
    many = corpus.one('SELECT count(*) AS n FROM segments WHERE fingerprint IS NOT NULL AND "index" = 0')["n"]
    return _prints(
        corpus, f'segments WHERE fingerprint IS NOT NULL AND "index" < {max(1, SEARCHED // max(many, 1))}'
    )


def _all_of(corpus: Corpus, recordings: np.ndarray) -> Prints:
    """All fingerprints of these recordings."""
    corpus.db.execute(
        "CREATE OR REPLACE TEMP TABLE looked_at AS SELECT unnest(?::VARCHAR[]) AS recording",
        [[f"{r:016x}" for r in recordings]],
    )
    return _prints(corpus, "segments SEMI JOIN looked_at USING (recording) WHERE fingerprint IS NOT NULL")


def _prints(corpus: Corpus, source: str) -> Prints:
    table = corpus.db.sql(f'SELECT "index", recording, fingerprint FROM {source}').to_arrow_table()
    numbers = table["index"].to_numpy()
    recordings, words = _hex(table["recording"], 1)[:, 0], _hex(table["fingerprint"], WORDS)
    found = []
    for number in np.unique(numbers):
        own = np.flatnonzero(numbers == number)
        own = own[np.argsort(recordings[own])]
        found.append((recordings[own], words[own]))
    return found


def _hex(column: pa.ChunkedArray, words: int) -> np.ndarray:
    """Text of 16·words hex digits each as uint64 (R, words)."""
    joined = "".join(
        chunk.cast(pa.binary()).buffers()[2].to_pybytes()[: 16 * words * len(chunk)].decode()
        for chunk in _whole(column)
    )
    return np.frombuffer(bytes.fromhex(joined), ">u8").astype(np.uint64).reshape(-1, words)


def _whole(column: pa.ChunkedArray) -> list[pa.Array]:
    """Chunks whose buffers begin with their first value."""
    return [
        pa.concat_arrays([chunk]) if not chunk.offset else pa.array(chunk.to_pylist(), pa.string())
        for chunk in column.chunks
        if len(chunk)
    ]


def candidates(prints: Prints) -> np.ndarray:
    """Pairs (P, 2) of recordings whose bits are close in at least one segment, each pair once."""
    pairs = []
    total = sum(len(recordings_R) for recordings_R, _ in prints)
    rotations = max(3, min(BITS // ROTATION_BITS, SORTED // max(total, 1)))
    for recordings_R, words_RW in prints:
        for first_bit in range(0, rotations * ROTATION_BITS, ROTATION_BITS):
            order = np.argsort(_from_bit(words_RW, first_bit))
            for step in range(1, NEIGHBOURS + 1):
                left, right = order[:-step], order[step:]
                close = _apart(words_RW[left], words_RW[right]) <= SAME
                pairs.append(np.stack([recordings_R[left[close]], recordings_R[right[close]]], 1))
    if not pairs:
        return np.zeros((0, 2), np.uint64)
    found = np.sort(np.concatenate(pairs), axis=1)
    return np.unique(found[found[:, 0] != found[:, 1]], axis=0)


def same(prints: Prints, pairs: np.ndarray) -> np.ndarray:
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
    corpus.db.execute(
        "CREATE OR REPLACE TEMP TABLE twins AS SELECT unnest(?::VARCHAR[]) AS recording", [list(label)]
    )
    rows = corpus.rows(
        "SELECT recording, coalesce(any_value(path), recording) AS path, coalesce(any_value(split), '') AS "
        "split, sum(samples) AS samples FROM named SEMI JOIN twins USING (recording) GROUP BY recording "
        "ORDER BY samples DESC, path, recording"
    )
    for row in rows:
        members.setdefault(label[row["recording"]], []).append(row)
    found = [
        Group(*(tuple(row[name] for row in rows) for name in ("recording", "path", "split")))
        for rows in members.values()
    ]
    return sorted(found, key=lambda group: group.paths)
