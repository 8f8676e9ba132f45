"""What a record says of its frames, and frames read back from float16 and from 8 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.shards.frames import CodesDescribed, decode_cqt, describe_codes, encode_uint8

FRAMES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-14, 250, width=32)
)


@given(FRAMES)
def test_eight_bits_are_within_half_a_step(frames_TF):
    low, high = float(frames_TF.min()), float(frames_TF.max())
    facts = {"offset": low, "scale": float(np.float32((high - low) / 255))}
    stored = encode_uint8(frames_TF, **facts)
    read = decode_cqt(stored, {"uint8": facts})
    assert stored.dtype == np.uint8 and read.dtype == np.float32
    assert np.abs(read - frames_TF).max() <= facts["scale"] * 0.5 + 1e-4


@given(FRAMES)
def test_float16_needs_no_facts(frames_TF):
    stored = frames_TF.astype(np.float16)
    read = decode_cqt(stored, {})
    assert read.dtype == np.float32 and np.array_equal(read, stored)


def test_a_shard_of_one_value_reads_back_as_that_value():
    silence = np.full((3, 4), np.float32(-13.8155))
    facts = {"offset": float(silence[0, 0]), "scale": 0.0}
    assert np.array_equal(decode_cqt(encode_uint8(silence, **facts), {"uint8": facts}), silence)


@pytest.mark.parametrize(
    "stored, facts, message",
    [
        (np.zeros((2, 3), np.int32), {}, "are int32: expected float16 or uint8"),
        (np.zeros((2, 3), np.uint8), {"float16": {}}, "facts.uint8 lacks 'uint8'"),
        (np.zeros((2, 3), np.uint8), {"uint8": {"offset": 0.0}}, "facts.uint8 lacks 'scale'"),
    ],
)
def test_what_cannot_be_read_is_refused(stored, facts, message):
    with pytest.raises(ValueError, match=message):
        decode_cqt(stored, facts)


def test_codes_are_described_by_facts_and_before_those_by_the_recipe():
    facts = {"codebooks": 3, "codebook_size": 64, "hop_samples": 320, "teacher_hop_samples": 960}
    recipe = {"teacher": {"codebooks": 8, "codebook_size": 1024}}
    assert describe_codes(facts, recipe) == CodesDescribed(3, 64, 320, 960)
    assert describe_codes({}, recipe) == CodesDescribed(8, 1024, 320, 320)
    with pytest.raises(ValueError, match="facts.codebooks is missing"):
        describe_codes({}, {"stage": "codes"})


def test_eight_bits_are_the_nearest_step_and_stop_at_both_ends():
    frames_TF = np.array([[-3.0, 0.9, 1.0, 1.24, 1.26], [100.0, 128.4, 128.5, 200.0, 1e9]], np.float32)
    stored = encode_uint8(frames_TF, 1.0, 0.5)
    assert stored.tolist() == [[0, 0, 0, 0, 1], [198, 255, 255, 255, 255]]
    assert decode_cqt(stored, {"uint8": {"offset": 1.0, "scale": 0.5}})[1, 0] == 100.0


def test_float32_frames_are_read_as_they_are():
    frames_TF = np.array([[1.5, -2.0]], np.float32)
    assert np.array_equal(decode_cqt(frames_TF, {}), frames_TF)


@pytest.mark.parametrize(
    "facts, recipe, described",
    [
        ({"codebooks": 3, "codebook_size": 64, "hop_samples": 640}, {}, CodesDescribed(3, 64, 640, 640)),
        ({"codebooks": 3, "codebook_size": 64}, {"teacher": None}, CodesDescribed(3, 64, 320, 320)),
        (
            {"codebooks": 3},
            {"teacher": {"codebook_size": 64, "hop_samples": 320}},
            CodesDescribed(3, 64, 320, 320),
        ),
    ],
)
def test_what_is_not_said_of_codes_has_its_default(facts, recipe, described):
    assert describe_codes(facts, recipe) == described


def test_a_missing_size_is_named():
    with pytest.raises(
        ValueError, match="facts.codebook_size is missing from the record of a codes column: label it again"
    ):
        describe_codes({"codebooks": 3}, {"teacher": "mert"})
