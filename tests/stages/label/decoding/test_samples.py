"""Samples of every format to int16 mono at one rate."""

import numpy as np
import pytest

from stages.label.base import RejectRecording
from stages.label.decoding import samples
from stages.label.decoding.samples import downmix, float_planes, resampled, to_int16


class TestSamples:
    @pytest.mark.parametrize(
        "name, values, full",
        [
            ("u8", np.array([[0, 128, 255]], np.uint8), [-1, 0, 127 / 128]),
            ("s16", np.array([[-32768, 0, 32767]], np.int16), [-1, 0, 32767 / 32768]),
            ("s32", np.array([[-(2**31), 0, 2**30]], np.int32), [-1, 0, 0.5]),
            ("s64", np.array([[-(2**63), 0, 2**62]], np.int64), [-1, 0, 0.5]),
            ("flt", np.array([[-1, 0, 0.5]], np.float32), [-1, 0, 0.5]),
            ("dbl", np.array([[-1, 0, 0.5]], np.float64), [-1, 0, 0.5]),
        ],
    )
    def test_full_scale_is_one_in_every_format(self, name, values, full):
        mono = downmix(float_planes(values, 1, name), 1, name)
        assert mono.dtype == np.float32 and mono.tolist() == np.float32(full).tolist()
        twice = downmix(float_planes(np.repeat(values, 2, axis=1), 2, name), 2, name)
        assert twice.tolist() == np.float32(full).tolist(), "packed"
        planar = downmix(float_planes(np.tile(values, (3, 1)), 3, name + "p"), 3, name + "p")
        assert planar == pytest.approx(np.float32(full), abs=1e-6)

    def test_packed_and_planar_channels_are_told_apart(self):
        packed = np.array([[1, 2, 3, 4, 5, 6]], np.int16)
        assert float_planes(packed, 2, "s16").tolist() == [[1, 3, 5], [2, 4, 6]]
        assert float_planes(packed.reshape(2, 3), 2, "s16p").tolist() == [[1, 2, 3], [4, 5, 6]]

    def test_an_unknown_sample_format_is_refused_by_name(self):
        with pytest.raises(RejectRecording, match="^unknown sample format s24$"):
            float_planes(np.zeros((1, 4)), 1, "s24")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("name", ["flt", "fltp", "dbl", "dblp"])
    def test_one_sample_that_is_no_number_is_refused(self, name, bad):
        values = np.zeros((1, 9))
        values[0, 4] = bad
        with pytest.raises(RejectRecording, match="^NaN or infinite samples$"):
            downmix(float_planes(values, 1, name), 1, name)

    def test_int16_is_rounded_and_clipped(self):
        block = np.float32([0, 0.5, 1.5, 2.5, -0.5, -1.5, 32766.6, 32767.6, -32768.4, -40_000]) / np.float32(
            32768
        )
        stored = to_int16(block)
        assert stored.dtype == np.int16
        assert stored.tolist() == [0, 0, 2, 2, 0, -2, 32767, 32767, -32768, -32768]

    def test_a_source_at_the_asked_rate_is_left_alone_and_another_rate_starts_anew(self, monkeypatch):
        ones = np.ones(24_000, np.float32)
        (same,) = resampled(iter([(ones, 24_000)]), 24_000, "HQ")
        assert same is ones
        parts = list(
            resampled(iter([(ones, 48_000), (ones, 48_000), (ones, 24_000), (ones, 12_000)]), 24_000, "HQ")
        )
        assert sum(len(part) for part in parts) == 24_000 + 24_000 + 48_000
        assert any(part is ones for part in parts)
        made = []
        stream = samples.soxr.ResampleStream
        monkeypatch.setattr(
            samples.soxr, "ResampleStream", lambda *a, **k: made.append((a, k)) or stream(*a, **k)
        )
        list(resampled(iter([(ones, 48_000)] * 3), 24_000, "QQ"))
        assert made == [((48_000, 24_000, 1), {"dtype": "float32", "quality": "QQ"})]
