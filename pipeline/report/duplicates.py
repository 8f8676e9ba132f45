"""Recordings that are the same music in other bytes, by the fingerprints gathered while labelling.

A fingerprint is 192 bits of a segment's chroma (`stages/label/statistics/pitch.py`); two encodings of one
piece differ in a few. Sorted by their bits from some bit on, near-duplicates often become neighbours; with
several first bits and segments one stretch of equal bits is enough. Letters: R recordings, P pairs."""

import numpy as np

from pipeline.report.corpus import Corpus, Row

BITS, WORDS = 192, 3
ROTATION_BITS = 16  # from one sorting's first bit to the next one's
NEIGHBOURS = 2  # compared with each
SEARCHED = 400_000  # fingerprints: all four of 100,000 recordings, only the first of more
SORTED = 12 * SEARCHED  # in all: from each of twelve bits, from fewer if there are more fingerprints
# bits of 192 that may differ in every segment two recordings share; unrelated music differs in about 96 (D)
SAME = 48


# per segment number: recordings uint64 (R,), ascending; words uint64 (R, WORDS)
Prints = list[tuple[np.ndarray, np.ndarray]]


def groups(corpus: Corpus) -> list[Row]:
    """`recordings`, `paths` and `splits` of each, the longest first: it is worth keeping. By first path."""
    where = "fingerprint IS NOT NULL"
    many = corpus.one(f'SELECT count(*) AS n FROM segments WHERE {where} AND "index" = 0')["n"]
    first = max(1, SEARCHED // max(many, 1))
    pairs = candidates(_prints(corpus, f'segments WHERE {where} AND "index" < {first}'))
    if len(pairs):
        corpus.db.execute(
            "CREATE OR REPLACE TEMP TABLE compared AS SELECT unnest(?::VARCHAR[]) AS recording",
            [[f"{r:016x}" for r in np.unique(pairs)]],
        )
        prints = _prints(corpus, f"segments SEMI JOIN compared USING (recording) WHERE {where}")
        pairs = pairs[same(prints, pairs)]
    return _named(corpus, pairs) if len(pairs) else []


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
    """Pairs (P, 2) that are close in at least one segment, each once."""
    pairs = [np.zeros((0, 2), np.uint64)]
    total = sum(len(recordings_R) for recordings_R, _ in prints)
    rotations = max(3, min(BITS // ROTATION_BITS, SORTED // max(total, 1)))
    for recordings_R, words_RW in prints:
        for first_bit in range(0, rotations * ROTATION_BITS, ROTATION_BITS):
            order = np.argsort(_from_bit(words_RW, first_bit))
            for step in range(1, NEIGHBOURS + 1):
                left, right = order[:-step], order[step:]
                close = _apart(words_RW[left], words_RW[right]) <= SAME
                pairs.append(np.stack([recordings_R[left[close]], recordings_R[right[close]]], 1))
    found = np.sort(np.concatenate(pairs), axis=1)
    return np.unique(found[found[:, 0] != found[:, 1]], axis=0)


def same(prints: Prints, pairs: np.ndarray) -> np.ndarray:
    """Which pairs (P, 2) are close wherever both have a fingerprint: bool (P,)."""
    alike = np.ones(len(pairs), bool)
    for recordings_R, words_RW in prints:
        at = np.searchsorted(recordings_R, pairs).clip(max=len(recordings_R) - 1)
        both = (recordings_R[at] == pairs).all(1)
        alike &= ~both | (_apart(words_RW[at[:, 0]], words_RW[at[:, 1]]) <= SAME)
    return alike


def _from_bit(words_RW: np.ndarray, bit: int) -> np.ndarray:
    """64 bits (R,), cyclically."""
    word, shift = divmod(bit, 64)
    first, second = words_RW[:, word], words_RW[:, (word + 1) % WORDS]
    return (first << np.uint64(shift)) | (second >> np.uint64(64 - shift))  # 0 when shifted by 64


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b).sum(1)


def _named(corpus: Corpus, pairs: np.ndarray) -> list[Row]:
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
    order = "ORDER BY samples DESC, path, recording"
    own = (f"list({name} {order}) AS {name}s" for name in ("recording", "path", "split"))
    return corpus.rows(
        f"""SELECT {", ".join(own)} FROM (SELECT recording, any_value(part) AS part, sum(samples) AS samples,
        coalesce(any_value(path), recording) AS path, coalesce(any_value(split), '') AS split
        FROM named JOIN linked USING (recording) GROUP BY recording) GROUP BY part ORDER BY 2"""
    )
