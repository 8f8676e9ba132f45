"""The decode stage: cutting, what a segment holds, its statistics, the recipe. Formats:
decoding/test_recording.py."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from stages.label import decode
from stages.label.base import Kept, ReadError, Rejected, RejectRecording
from stages.label.decode import Decode, Source, cut_segments, flac_bytes, wav_bytes
from stages.label.decoding.source import quick_hash

QUICKSTART = Path(__file__).resolve().parents[3] / "examples" / "quickstart"


def source(path, recording="r"):
    seen = os.stat(path)
    return Source(recording, os.fsencode(path), seen.st_size, seen.st_mtime_ns, quick_hash(path))


def tone(rate_hz, seconds=2.0, hz=440.0, amplitude=0.5, channels=1):
    wave = amplitude * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)
    return np.tile(wave[:, None], (1, channels))


class TestSegments:
    @given(
        blocks=st.lists(st.integers(0, 3_000), max_size=30),
        frames=st.integers(1, 5),
        share=st.floats(0.01, 1),
    )
    def test_whole_segments_then_one_remainder(self, blocks, frames, share):
        segment = 320 * frames
        tail = max(1, round(share * segment))
        total = sum(blocks)
        wave = np.arange(total, dtype=np.int32)
        pieces = np.split(wave, np.cumsum(blocks)[:-1]) if blocks else []
        cuts = list(cut_segments(pieces, segment, tail))
        lengths = [len(piece) for piece in cuts]
        assert np.array_equal(np.concatenate([wave[:0], *cuts]), wave)
        assert all(length == segment for length in lengths[:-1])
        if total:
            assert lengths[-1] < segment + tail
            assert lengths[-1] >= tail or len(lengths) == 1

    @pytest.mark.parametrize(
        "seconds, expected",
        [
            (2, [2]),
            (30, [30]),
            (32.5, [32.5]),
            (33, [30, 3]),
            (60, [30, 30]),
            (62.9, [30, 32.9]),
            (65, [30, 30, 5]),
        ],
    )
    def test_a_tail_under_three_seconds_joins_the_segment_before(self, tmp_path, decoder, seconds, expected):
        soundfile.write(tmp_path / "x.wav", np.zeros(round(seconds * 24_000), np.int16), 24_000)
        *samples, last = decoder([source(tmp_path / "x.wav", "rec")])
        assert [sample.row["samples"] / 24_000 for sample in samples] == expected
        assert [sample.row["start"] for sample in samples] == [720_000 * i for i in range(len(expected))]
        assert [sample.key for sample in samples] == [f"rec-{i:05d}" for i in range(len(expected))]
        assert last.note["segments"] == len(expected)
        for sample in samples:
            assert sample.row["frames"] == sample.row["samples"] // 320
            assert soundfile.info(io.BytesIO(sample.members["wav"])).frames == sample.row["samples"]

    def test_the_json_holds_identity_only(self, decoder):
        first, *_ = decoder([source(QUICKSTART / "stg1.ogg", "song")])
        assert list(first.members) == ["json", "wav"]
        assert json.loads(first.members["json"]) == {
            "rate_hz": 24000, "recording": "song", "samples": 720_000, "source_channels": 2,
            "source_codec": "vorbis", "source_rate_hz": 44_100, "start": 0,
        }  # fmt: skip
        assert b" " not in first.members["json"]

    @pytest.mark.parametrize("format", ["wav", "flac"])
    def test_the_same_input_gives_the_same_bytes(self, format):
        runs = []
        for _ in range(2):
            decoder = Decode(format=format, segment_s=12.0).open()
            runs.append(list(decoder([source(QUICKSTART / "stg1.ogg")])))
            decoder.close()
        assert runs[0] == runs[1] and len(runs[0]) > 6
        wave, rate_hz = soundfile.read(io.BytesIO(runs[0][0].members[format]), dtype="int16")
        assert rate_hz == 24_000 and len(wave) == 288_000

    def test_flac_and_wav_hold_the_same_samples(self):
        wave = np.random.default_rng(0).integers(-32768, 32767, 9_999, np.int16, endpoint=True)
        for data in (wav_bytes(wave), flac_bytes(wave)):
            assert np.array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], wave)


class TestRecipe:
    @pytest.mark.parametrize(
        "field, value",
        [("rate_hz", 44_100), ("segment_s", 0.01), ("segment_s", 0), ("segment_s", -4), ("min_tail_s", 31.0),
         ("min_tail_s", -1), ("format", "mp3"), ("resampler", "best"), ("max_recording_h", 0)],
    )  # fmt: skip
    def test_an_impossible_value_names_its_field(self, field, value):
        with pytest.raises(ValueError, match=f"^Decode.{field} is {value!r}: "):
            Decode(**{field: value})

    def test_a_segment_of_an_odd_number_of_frames(self):
        assert Decode(segment_s=320 / 24_000, min_tail_s=0).segment_samples == 320

    @pytest.mark.parametrize("field, value", [
        ("max_recording_h", float("inf")), ("max_recording_h", float("nan")),
            ("min_tail_s", 30.01), ("format", "WAV"), ("resampler", "hq"),
    ])  # fmt: skip
    def test_just_outside_is_refused(self, field, value):
        with pytest.raises(ValueError, match=f"^Decode.{field} is "):
            Decode(**{field: value})

    def test_the_borders_are_allowed_and_the_defaults_are_these(self):
        for values in (
            {"min_tail_s": 0},
            {"min_tail_s": 30.0},
            {"max_recording_h": 1e-9},
            {"resampler": "VHQ"},
            {"format": "flac"},
        ):
            Decode(**values)
        assert Decode() == Decode(
            rate_hz=24_000, segment_s=30.0, min_tail_s=3.0, format="wav", resampler="HQ", max_recording_h=12.0
        )
        assert (Decode().segment_samples, Decode().tail_samples) == (720_000, 72_000)
        assert Decode(min_tail_s=0).tail_samples == 320, "each segment has a label"
        assert (Decode.name, Decode.version, Decode.writes) == ("decode", 1, "audio")


class TestAsked:
    """What a decoder asks of its guard, and what it makes of the answers."""

    def test_the_request_is_the_recipe_and_the_outcome_holds_the_facts(self):
        asked = []

        class Answering:
            def ready(self):
                pass

            def decode(self, source, path, request, facts, channels):
                asked.append((path, request))
                facts |= {"source_rate_hz": 8, "source_channels": 1, "source_codec": "pcm"}
                yield np.arange(500, dtype=np.int16)
                yield np.arange(500, 1_500, dtype=np.int16)
                facts["decoded_s"] = 125.0

        decoder = decode.Decoder(
            Decode(segment_s=0.04, min_tail_s=0.02, resampler="LQ", max_recording_h=0.5), Answering(), None
        )
        first, last, kept = decoder([Source("r", b"/a\xff.wav", 0, 0, "")])
        assert asked == [(b"/a\xff.wav", {"rate_hz": 24_000, "resampler": "LQ", "max_s": 1800.0})]
        facts = {"source_rate_hz": 8, "source_channels": 1, "source_codec": "pcm"}
        assert kept == Kept("r", facts | {"decoded_s": 125.0, "samples": 1_500, "segments": 2})
        assert (first.key, last.key) == ("r-00000", "r-00001")
        assert last.row == {"recording": "r", "index": 1, "start": 960, "samples": 540, "frames": 1}
        wave = np.concatenate([np.frombuffer(sample.members["wav"][44:], "<i2") for sample in (first, last)])
        assert np.array_equal(wave, np.arange(1_500))

    def test_a_refusal_is_a_rejection_and_the_next_recording_follows(self):
        class Refusing:
            def ready(self):
                pass

            def decode(self, source, path, request, facts, channels):
                facts |= {"source_rate_hz": 8, "source_channels": 1, "source_codec": "pcm"}
                yield np.zeros(1_000, np.int16)
                if source.recording == "bad":
                    raise RejectRecording("torn")

        items = list(
            decode.Decoder(Decode(), Refusing(), None)(
                [Source(name, b"x", 0, 0, "") for name in ("bad", "good")]
            )
        )
        assert (
            items[0] == Rejected("bad", "torn")
            and items[-1].recording == "good"
            and isinstance(items[-1], Kept)
        )


class TestFetch:
    def test_an_s3_source_is_fetched_and_given_back(self, tmp_path):
        local = tmp_path / "copy"
        local.write_bytes(wav_bytes(np.ones(2_400, np.int16)))
        events = []

        @contextlib.contextmanager
        def fetch(address):
            events.append(address)
            yield local
            events.append("given back")

        decoder = Decode().open(fetch=fetch)
        there = source(local)
        remote = Source("r", b"s3://bucket/a b.wav", there.size, 123, there.quick)
        *samples, last = decoder([remote])
        decoder.close()
        assert isinstance(last, Kept) and len(samples) == 1
        assert events == ["s3://bucket/a b.wav", "given back"]

    def test_a_failed_fetch_is_a_read_error(self):
        def fetch(address):
            raise ConnectionError("no route")

        remote = Source("r", b"s3://bucket/x.wav", 1, 0, "")
        with pytest.raises(ReadError, match="s3://bucket/x.wav: cannot be fetched .no route"):
            list(Decode().open(fetch=fetch)([remote]))
        with pytest.raises(ReadError, match="fetch="):
            list(Decode().open()([remote]))


class Slow:
    """A guard whose recordings are named after what they are: seconds of audio, seconds to decode, and maybe
    a refusal."""

    def __init__(self):
        self.now = 0.0

    def ready(self):
        if not self.now:
            self.now += 1000

    def decode(self, source, path, request, facts, channels):
        self.ready()
        audio_s, took_s, *refused = source.recording.split()
        facts |= {"source_rate_hz": 24_000, "source_channels": 1, "source_codec": "pcm"}
        self.now += float(took_s)
        yield np.zeros(int(audio_s) * 24_000, np.int16)
        if refused:
            raise RejectRecording("damaged")

    def close(self):
        pass


class TestSlowest:
    """Which recordings of a shard took longest for their length, by a clock of the test's own."""

    @pytest.fixture
    def slow(self, monkeypatch):
        guard = Slow()
        monkeypatch.setattr(decode, "monotonic", lambda: guard.now)
        return guard, decode.Decoder(Decode(), guard, None)

    @staticmethod
    def sources(*recordings):
        return [Source(recording, b"x", 0, 0, "") for recording in recordings]

    def test_a_long_one_at_ordinary_speed_is_not_slow_and_a_rejected_one_may_be(self, slow):
        _, decoder = slow
        names = ("900 9", "60 3", "60 0.6", "1 0.1", "2 0.02", "60 8 refused", "30 0.3")
        outcomes = [item for item in decoder(self.sources(*names)) if isinstance(item, Kept | Rejected)]
        assert [o.recording for o in outcomes] == list(names)
        found = decoder.run_facts()["slowest"]
        assert [one["recording"] for one in found] == ["60 8 refused", "60 3", "1 0.1", "2 0.02", "30 0.3"]
        assert found[0] == {"recording": "60 8 refused", "seconds": 8.0, "times_real_time": 3.75}

    def test_the_readers_time_is_not_the_recordings_and_the_last_shard_is_forgotten(self, slow):
        guard, decoder = slow
        list(decoder(self.sources("9 99")))
        for _ in decoder(self.sources("60 2")):
            guard.now += 1000
        assert decoder.run_facts()["slowest"] == [
            {"recording": "60 2", "seconds": 2.0, "times_real_time": 30.0}
        ]

    def test_what_gave_no_audio_has_no_speed_and_equals_are_told_by_name(self, slow):
        _, decoder = slow
        list(decoder(self.sources("60 0.5", "060 0.5", "0 0.01 refused")))
        found = [(one["recording"], one["times_real_time"]) for one in decoder.run_facts()["slowest"]]
        assert found == [("0 0.01 refused", 0.0), ("060 0.5", 120.0), ("60 0.5", 120.0)]

    def test_left_early_a_recording_is_closed(self, slow):
        guard, decoder = slow
        closed = []

        def decode(source, *rest):
            try:
                yield from Slow.decode(guard, source, *rest)
            finally:
                closed.append(source.recording)

        guard.decode = decode
        items = decoder(self.sources("90 1"))
        next(items)
        items.close()
        assert closed == ["90 1"] and decoder.run_facts()["slowest"] == []
