"""Recordings that are the same music in other bytes, by the fingerprints gathered while labelling.

A fingerprint is 192 bits of a segment's chroma (`stages/label/statistics/pitch.py`); two encodings of the
same music differ in a few. Sorted by their bits from some bit on, near-duplicates often become neighbours:
this is repeated from several first bits and for each of a recording's first segments, so that one stretch
of equal bits is enough. Neighbours are then compared in full.

Letters: R recordings, W words of 64 bits.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.report.corpus import Corpus

BITS, WORDS = 192, 3
ROTATION_BITS = 16  # from one sorting's first bit to the next one's
NEIGHBOURS = 2  # each is compared with so many that follow it
SEARCHED = 400_000  # fingerprints: all four of 100,000 recordings, only the first of more
SORTED = 12 * SEARCHED  # in all: from each of twelve bits, from fewer if there are more fingerprints
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
    first = max(1, SEARCHED // max(many, 1))
    return _prints(corpus, f'segments WHERE fingerprint IS NOT NULL AND "index" < {first}')


def _all_of(corpus: Corpus, recordings: np.ndarray) -> Prints:
    """All fingerprints of these recordings."""
    corpus.db.execute(
        "CREATE OR REPLACE TEMP TABLE compared AS SELECT unnest(?::VARCHAR[]) AS recording",
        [[f"{r:016x}" for r in recordings]],
    )
    return _prints(corpus, "segments SEMI JOIN compared USING (recording) WHERE fingerprint IS NOT NULL")


def _prints(corpus: Corpus, source: str) -> Prints:
    words = [f"('0x' || fingerprint[{16 * w + 1}:{16 * w + 16}])::UBIGINT AS w{w}" for w in range(WORDS)]
    found = corpus.db.execute(
        f"SELECT \"index\", ('0x' || recording)::UBIGINT AS recording, {', '.join(words)} FROM {source} "
        "ORDER BY recording"
    ).fetchnumpy()
    words_RW = np.stack([found[f"w{w}"] for w in range(WORDS)], 1)
    of_number = (found["index"] == number for number in np.unique(found["index"]))
    return [(found["recording"][own], words_RW[own]) for own in of_number]


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
    alike = np.ones(len(pairs), bool)
    for recordings_R, words_RW in prints:
        at = np.searchsorted(recordings_R, pairs).clip(max=len(recordings_R) - 1)
        both = (recordings_R[at] == pairs).all(1)
        alike &= ~both | (_apart(words_RW[at[:, 0]], words_RW[at[:, 1]]) <= SAME)
    return alike


def _from_bit(words_RW: np.ndarray, bit: int) -> np.ndarray:
    """The 64 bits that begin at `bit`, (R,), cyclically."""
    word, shift = divmod(bit, 64)
    first, second = words_RW[:, word], words_RW[:, (word + 1) % WORDS]
    return first if not shift else (first << np.uint64(shift)) | (second >> np.uint64(64 - shift))


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b).sum(1)


def _named(corpus: Corpus, pairs: np.ndarray) -> list[Group]:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ids, at = np.unique(pairs, return_inverse=True)
    left, right = at.reshape(pairs.shape).T
    graph = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(len(ids), len(ids)))
    corpus.db.execute(
        "CREATE OR REPLACE TEMP TABLE linked AS SELECT unnest(?::VARCHAR[]) AS recording, "
        "unnest(?::INT[]) AS part",
        [[f"{i:016x}" for i in ids], connected_components(graph)[1].tolist()],
    )
    own = (f"list({name} ORDER BY samples DESC, path, recording)" for name in ("recording", "path", "split"))
    rows = corpus.db.execute(
        f"""SELECT {", ".join(own)} FROM (SELECT recording, any_value(part) AS part, sum(samples) AS samples,
        coalesce(any_value(path), recording) AS path, coalesce(any_value(split), '') AS split
        FROM named JOIN linked USING (recording) GROUP BY recording) GROUP BY part ORDER BY 2"""
    ).fetchall()
    return [Group(*map(tuple, row)) for row in rows]
