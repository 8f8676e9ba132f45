"""Reading one micro-batch of crops: damage is met at one call, and what fills its place is known beforehand.

Letters: B clips, N samples, T label frames of a recording, K codebooks.
"""

import numpy as np
import pytest
import torch

from stages.pretrain.data import counter_rng
from stages.pretrain.data.crops import Crops, Reader
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from tests.stages.pretrain.corpus import CROP, SEGMENT, SIZE, Corpus
from tests.stages.pretrain.reading import FRAMES, G, reading, state

pytestmark = pytest.mark.usefixtures("one_thread")
AUDIO, CODES, CQT = range(3)  # columns


def spoilt(reader: Reader, harm) -> list:
    """After each read `harm(want, out)` may change its bytes or raise. The wants are noted."""
    read, wants = reader.tars.read, []

    def harmed(want, out) -> None:
        read(want, out)
        wants.append(want)
        harm(want, out)

    reader.tars.read = harmed
    return wants


def assert_holds(made: Corpus, reader: Reader, batch, crops: Crops) -> None:
    """The batch is these crops, cut from the whole columns."""
    for b, (row, start) in enumerate(zip(crops.row.tolist(), crops.start.tolist(), strict=True)):
        recording, segment = reader.pinned.key(row).split("-")
        assert (batch.keys[b], batch.recordings[b]) == (f"{recording}-{segment}", recording)
        first = int(segment) * SEGMENT + start
        frames = slice(first // 320, (first + CROP) // 320)
        assert np.array_equal(batch.wave_BN[b].numpy() * 32768, made.waves[recording][first : first + CROP])
        assert np.array_equal(batch.codes[made.names["codes"]][b].numpy(), made.codes[recording][frames])
        assert np.array_equal(batch.cqt_BLF[b].numpy(), made.cqt[recording][frames])


def drawn(reader: Reader, places: np.ndarray, consumed: int = 0):
    plan = reader.plan(state(reader, consumed), places)
    return plan, reader.batch(plan)


def test_a_batch_is_the_planned_crops_and_says_which(made, reader):
    for consumed, places in ((0, np.array([1, 3, 5])), (5, np.array([0, 2])), (11, np.array([4, 0, 1]))):
        plan, batch = drawn(reader, places, consumed)
        assert_holds(made, reader, batch, reader.places.crops(state(reader, consumed), places))
        assert batch.positions == (consumed + places).tolist() and batch.replaced == []
        keys_B = counter_rng.keys(counter_rng.key(counter_rng.MASK, 3, 0), consumed + places)
        assert np.array_equal(batch.mask_BT.numpy(), Masking().draw(keys_B, FRAMES))
    assert sorted(reader._raw) == [2, 3], "buffers of each size are used again"


def failing(reader: Reader, times: int, column: int = AUDIO):
    """The first reads of a column fail."""
    left = [times]

    def harm(want, out) -> None:
        if want[0] == column and left[0]:
            left[0] -= 1
            raise OSError(f"failure {times - left[0]}")

    return spoilt(reader, harm)


@pytest.mark.parametrize("times", [1, 2, 16])
@pytest.mark.parametrize("column", [AUDIO, CODES, CQT])
def test_a_sample_is_replaced_until_one_can_be_read(made, reader, times, column):
    at, place = state(reader, 7), np.array([2])
    plan = reader.plan(at, place)
    failing(reader, times, column)
    batch = reader.batch(plan)
    tried = [plan.crops] + [reader.places.replacement(at, 2, attempt) for attempt in range(times)]
    keys = [reader.pinned.key(int(c.row[0])) for c in tried]
    assert batch.replaced == [f"{key}: OSError: failure {i + 1}" for i, key in enumerate(keys[:-1])]
    assert_holds(made, reader, batch, tried[-1])
    assert batch.positions == [9]


def test_seventeen_failures_of_one_sample_are_the_end(reader):
    plan = reader.plan(state(reader), np.array([2]))
    failing(reader, 17)
    with pytest.raises(
        ValueError,
        match=r"data: 16 samples in a row could not be read, last [0-9a-f]{16}-0000\d: OSError: failure 17: ",
    ):
        reader.batch(plan)


def test_only_the_clips_that_fail_are_read_again(made, reader):
    at, places = state(reader), np.array([0, 1, 2, 3])
    plan = reader.plan(at, places)
    bad = [plan.wants[1][0][0], plan.wants[3][0][0]]

    def harm(want, out) -> None:
        if want in bad:
            raise EOFError("cut off")

    wants = spoilt(reader, harm)
    batch = reader.batch(plan)
    rows, starts = plan.crops.row.copy(), plan.crops.start.copy()
    for b in (1, 3):
        attempt = 0
        while reader.audio(Crops(rows[[b]], starts[[b]]), np.array([CROP]))[0][0] in bad:
            other = reader.places.replacement(at, b, attempt)
            rows[b], starts[b], attempt = other.row[0], other.start[0], attempt + 1
    assert_holds(made, reader, batch, Crops(rows, starts))
    assert len(batch.replaced) >= 2 and all(r.endswith(": EOFError: cut off") for r in batch.replaced)
    assert len([w for w in wants if w[0] == AUDIO]) == 4 + len(batch.replaced)


@pytest.mark.parametrize(("code", "refused"), [(SIZE - 1, False), (SIZE, True), (65_535, True)])
def test_a_code_beyond_the_codebook_is_damage(reader, code, refused):
    plan, left = reader.plan(state(reader), np.array([0, 1])), [1]

    def harm(want, out) -> None:
        if want[0] == CODES and left:
            left.clear()
            np.frombuffer(out, "<u2")[-1] = code

    spoilt(reader, harm)
    batch, key = reader.batch(plan), reader.pinned.key(int(plan.crops.row[0]))
    said = f"{key}: {reader.pinned.codes[0].name} holds the code {code}, its codebooks have {SIZE}"
    assert batch.replaced == ([said] if refused else [])
    assert refused or batch.codes[reader.pinned.codes[0].name][0, -1, -1] == code


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_cqt_that_is_not_finite_is_damage_and_an_earlier_reason_stands(made, reader, value):
    if made.storage != "float16":
        pytest.skip("whole numbers are always finite")
    plan, seen = reader.plan(state(reader), np.array([0, 1, 2])), []

    def harm(want, out) -> None:
        if want[0] == CQT and len(seen) < 2:  # of the first two clips; the second's codes are wrong too
            seen.append(want)
            np.frombuffer(out, "<f2")[7] = value
        if want[0] == CODES and want == plan.wants[1][1][0]:
            np.frombuffer(out, "<u2")[0] = 60

    spoilt(reader, harm)
    replaced = reader.batch(plan).replaced
    first, second = (reader.pinned.key(int(row)) for row in plan.crops.row[:2])
    assert f"{first}: {made.names['cqt']} holds NaN or infinite values" in replaced
    assert (
        f"{second}: {made.names['codes']} holds the code 60, its codebooks have 50" in replaced
        and len(replaced) == 2
    )


def test_a_held_out_crop_that_fails_is_filled_by_the_next_and_counts_for_nothing(made, reader):
    rows = reader.pinned.valid_V[:3]
    crops = Crops(rows, np.array([0, 320, 640]))
    bad = [reader.audio(Crops(rows[[i]], crops.start[[i]]), np.array([CROP]))[0][0] for i in (0, 2)]

    def harm(want, out) -> None:
        if want in bad:
            raise OSError("gone")

    spoilt(reader, harm)
    numbers, keys_B = np.array([2, 1, 0, 1]), counter_rng.keys(5, np.arange(4))
    batch = reader.fixed(crops, numbers, keys_B, np.array([True, True, True, False]))
    first = 1  # after 2 comes 0, which fails too
    assert_holds(made, reader, batch, Crops(rows[[first, 1, first, 1]], crops.start[[first, 1, first, 1]]))
    assert len(batch.replaced) == 3 and batch.mask_BT.any(1).tolist() == [False, True, False, False]
    assert np.array_equal(batch.mask_BT[1].numpy(), Masking().draw(keys_B, FRAMES)[1])


def test_pieces_of_donors_are_added_and_a_donor_that_fails_adds_nothing(data):
    mixture = Mixture(prob=1.0, min_pieces=2, max_pieces=2, piece_s=(0.1, 0.2), gain=0.25)
    mixed, clean = reading(data, mixture), reading(data)
    places = np.arange(G)
    plan, expected = mixed.plan(state(mixed), places), drawn(clean, places)[1].wave_BN.clone()
    whole = expected.clone()
    for number, (clip, donor, start, to, length) in enumerate(
        zip(
            *(getattr(plan.pieces, n).tolist() for n in ("clip", "donor", "start", "to", "length")),
            strict=True,
        )
    ):
        if number:  # the first fails
            expected[clip, to : to + length] += 0.25 * whole[donor, start : start + length]
    wave = mixed.wave
    mixed.wave = lambda audio, out: (
        wave(audio, out) if audio is not plan.donors[0] else (_ for _ in ()).throw(OSError("gone"))
    )
    batch = mixed.batch(plan)
    assert (
        torch.allclose(batch.wave_BN, expected, atol=1e-6)
        and not batch.replaced
        and len(plan.donors) == 2 * G
    )
    for made in (mixed, clean):
        made.tars.close()


def test_everything_a_batch_reads_is_asked_for_ahead(data):
    mixed = reading(data, Mixture(prob=1.0, piece_s=(0.1, 0.2)))
    plan, asked = mixed.plan(state(mixed), np.arange(G)), []
    mixed.tars.ahead = asked.extend
    mixed.ahead(plan)
    read = spoilt(mixed, lambda want, out: None)
    mixed.batch(plan)
    assert sorted(asked) == sorted(read) and len(asked) == 3 * G + len(plan.donors)
    mixed.tars.close()
