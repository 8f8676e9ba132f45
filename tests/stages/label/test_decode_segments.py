"""What a decoder writes of each segment: the wav header field by field, the correlation of its own
channels."""

import json
import struct

import numpy as np

from stages.label import decode
from stages.label.base import Sample
from stages.label.decode import Decode, Source, wav_bytes


def test_a_wav_header_says_mono_16_bits_at_24_khz():
    data = wav_bytes(np.arange(5, dtype=np.int16))
    kind, size, wave, name, length, form, channels, rate, bytes_s, block, bits, what, count = struct.unpack(
        "<4sI4s4sIHHIIHH4sI", data[:44]
    )
    assert (kind, wave, name, what) == (b"RIFF", b"WAVE", b"fmt ", b"data")
    assert (size, length, count) == (len(data) - 8, 16, 10)
    assert (form, channels, rate, bytes_s, block, bits) == (1, 1, 24_000, 48_000, 2, 16)


class Halves:
    """A guard whose recording is mono in its first second and cancels in its second."""

    closed = False

    def ready(self):
        pass

    def close(self):
        self.closed = True

    def decode(self, source, path, request, facts, channels):
        facts |= {"source_rate_hz": 24_000, "source_channels": 2, "source_codec": "pcm"}
        channels(0.0, 1.0, 1.0, 1.0, 1.0)
        channels(1.0, 2.0, 1.0, 1.0, -1.0)
        yield np.zeros(48_000, np.int16)


def test_each_segment_has_the_correlation_of_its_own_stretch():
    decoder = decode.Decoder(Decode(segment_s=1, min_tail_s=0.1), Halves(), None)
    samples = [item for item in decoder([Source("r", b"a.wav", 0, 0, "")]) if isinstance(item, Sample)]
    assert [sample.stats["stereo"] for sample in samples] == [1.0, -1.0]


def test_the_identity_of_a_segment_is_the_same_text_every_time():
    decoder = decode.Decoder(Decode(segment_s=1, min_tail_s=0.1), Halves(), None)
    for sample in [item for item in decoder([Source("r", b"a.wav", 0, 0, "")]) if isinstance(item, Sample)]:
        text = sample.members["json"].decode()
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_closing_a_decoder_ends_its_child():
    guard = Halves()
    decode.Decoder(Decode(), guard, None).close()
    assert guard.closed
