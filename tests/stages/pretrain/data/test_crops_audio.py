"""The bytes of crops: audio across segments and at a member's end, with and without a CQT column.

Letters: B clips, N samples.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from stages.pretrain.data.crops import FULL_SCALE, Crops, Reader
from tests.stages.pretrain.corpus import CROP, SEGMENT
from tests.stages.pretrain.reading import reading, state

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(reader: Reader, places: np.ndarray, consumed: int = 0):
    plan = reader.plan(state(reader, consumed), places)
    return plan, reader.batch(plan)


@pytest.mark.parametrize("size", [1, 999, 64_000, 300_000])
def test_context_is_the_recordings_with_silence_outside(made, reader, size):
    for row, first in product((0, 2, 3, 5), (-70_000, -64_001, -64_000, -1, 0, 1, 64_000 - 1)):
        recording, segment = reader.pinned.key(row).split("-")
        out = np.full(size, 77, dtype="<i2")
        reader.context(row, first, out)
        at = int(segment) * SEGMENT + first
        padded = np.pad(made.waves[recording], 400_000)
        assert np.array_equal(out, padded[400_000 + at : 400_000 + at + size]), (row, first)


def test_context_ends_with_the_last_recording(made, reader):
    row, out = len(reader.pinned.start_R) - 1, np.full(100_000, 77, dtype="<i2")
    assert reader.pinned.start_R[row] == 3 * SEGMENT
    reader.context(row, 10, out)
    rest = made.waves[reader.pinned.recording(row)][3 * SEGMENT + 10 :]
    assert np.array_equal(out[: len(rest)], rest) and not out[len(rest) :].any()


def test_an_online_cqt_gets_waves_with_context_and_no_stored_frames(made, data):
    online = reading(replace(data, cqt="online"))
    plan, batch = drawn(online, np.array([0, 3]))
    beside = online.pinned.cqt.context_samples
    assert (
        batch.cqt_BLF is None
        and batch.context_BN.shape == (2, CROP + 2 * beside)
        and batch.wave_BN.is_contiguous()
    )
    for b, (row, start) in enumerate(zip(plan.crops.row, plan.crops.start, strict=True)):
        recording, segment = online.pinned.key(row).split("-")
        at, padded = int(segment) * SEGMENT + int(start), np.pad(made.waves[recording], beside)
        assert np.array_equal(batch.context_BN[b].numpy() * FULL_SCALE, padded[at : at + CROP + 2 * beside])
    assert torch.equal(batch.wave_BN, batch.context_BN[:, beside:-beside]) and all(
        len(labels) == 1 for _, labels in plan.wants
    )
    online.tars.close()


def test_no_cqt_at_all(data):
    without = reading(replace(data, cqt="none"))
    batch = drawn(without, np.array([0]))[1]
    assert batch.cqt_BLF is None and batch.context_BN is None and len(batch.codes) == 1
    without.tars.close()


def test_a_flac_member_that_ends_before_is_told(made, reader):
    if made.format != "flac":
        pytest.skip("only a compressed member is decoded")
    row = 0
    samples = int(reader.pinned.samples_R[row])
    want = reader.audio(Crops(np.array([row]), np.array([samples - 10])), np.array([10]))[0]
    out = np.empty(10, dtype="<i2")
    reader.wave(want, out)
    assert np.array_equal(out, made.waves[reader.pinned.recording(row)][samples - 10 : samples])
    with pytest.raises(EOFError, match=f"flac member ends before sample {samples + 1}$"):
        reader.wave(want, np.empty(11, dtype="<i2"))
