"""A thousand damaged files: one outcome each, within bounded time, whatever the damage."""

import os
import time
from collections import Counter

import numpy as np
import pytest

from stages.label.base import Kept, Rejected
from stages.label.decode import Decode
from stages.label.scan.probing import probe
from tests.stages.label.decoding.sounds import source
from tests.wild import making
from tests.wild.pieces import Music

FILES, SEED = 1_000, 20_261_127
LONGEST_S = 20.0  # of one file; the decoder's own limits are longer


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: bits flipped, bytes struck out, inserted, zeroed, doubled, or the rest cut off."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        early = rng.random() < 0.5  # where headers are
        at = int(rng.integers(0, min(len(out), 400) if early else len(out)))
        count = int(2 ** rng.uniform(0, 12))
        kind = rng.integers(0, 6)
        if kind == 0:
            for place in rng.integers(at, min(len(out), at + count), 1 + count // 50):
                out[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del out[at : at + count]
        elif kind == 2:
            out[at:at] = rng.integers(0, 256, count, np.uint8).tobytes()
        elif kind == 3:
            out[at : at + count] = bytes(len(out[at : at + count]))
        elif kind == 4:
            out[at:at] = out[max(0, at - count) : at]
        else:
            del out[max(at, 1) :]
        if not out:
            return b"\0"
    return bytes(out)


@pytest.mark.slow
def test_each_has_one_outcome(tmp_path):
    rng, outcomes = np.random.default_rng(SEED), Counter()
    whole = [odd for odd in making.every(Music()) if not odd.rejected and odd.seconds < 10]
    decoder = Decode(max_recording_h=0.1).open(stall_s=LONGEST_S)
    try:
        for number in range(FILES):
            odd = whole[number % len(whole)]
            path = tmp_path / f"{number}{os.path.splitext(os.fsdecode(odd.name))[1].strip()}"
            path.write_bytes(damaged(odd.data, rng))
            since = time.monotonic()
            facts = probe(bytes(path))
            if facts["reason"] is None:
                assert facts["duration_s"] >= 0
                *_, last = decoder([source(path)])
                assert isinstance(last, Kept | Rejected), (number, odd.name, last)
                outcomes[type(last).__name__] += 1
                if isinstance(last, Rejected):
                    assert last.reason and "Traceback" not in last.reason, (number, last.reason)
                    assert "decoder crashed" not in last.reason or "signal" in last.reason
            else:
                outcomes["at scan"] += 1
            assert time.monotonic() - since < 3 * LONGEST_S, (number, odd.name)
            path.unlink()
    finally:
        decoder.close()
    assert outcomes.total() == FILES and min(outcomes.values()) > 50, outcomes
