"""probe: what one header says, and what is said of a header that cannot be read."""

import errno
import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from stages.label.scan import probing
from stages.label.scan.probing import full_sha256, probe, recording_id

QUICKSTART = Path(__file__).resolve().parents[4] / "examples" / "quickstart"


def noise(seconds: float, rate_hz: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (int(seconds * rate_hz), channels)).astype(np.float32)


def test_a_real_track():
    facts = probe(os.fsencode(QUICKSTART / "stg1.ogg"))
    assert facts["reason"] is None
    assert (facts["container"], facts["codec"]) == ("ogg", "vorbis")
    assert (facts["rate_hz"], facts["channels"]) == (44_100, 2)
    assert facts["duration_s"] == pytest.approx(81.23, abs=0.01)
    assert facts["size"] == (QUICKSTART / "stg1.ogg").stat().st_size


@pytest.mark.parametrize(
    ("name", "rate_hz", "channels", "codec"),
    [
        ("a.wav", 8_000, 8, "pcm_s16le"),
        ("b.wav", 384_000, 1, "pcm_s16le"),
        ("c.flac", 44_100, 2, "flac"),
        ("d.mp3", 44_100, 1, "mp3"),
        ("e.aiff", 22_050, 1, "pcm_s16be"),
    ],
)
def test_rates_and_channels(tmp_path, name, rate_hz, channels, codec):
    soundfile.write(tmp_path / name, noise(2, rate_hz, channels), rate_hz)
    facts = probe(os.fsencode(tmp_path / name))
    assert facts["reason"] is None
    assert (facts["rate_hz"], facts["channels"], facts["codec"]) == (rate_hz, channels, codec)
    assert facts["duration_s"] == pytest.approx(2, abs=0.1)


def test_m4a(tmp_path):
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise(1, 44_100, 1).T.copy(), format="fltp", layout="mono")
        frame.rate = 44_100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    facts = probe(os.fsencode(path))
    assert (facts["reason"], facts["codec"], facts["rate_hz"]) == (None, "aac", 44_100)


def test_a_wrong_extension_is_sniffed(tmp_path):
    path = tmp_path / "really ogg.wav"
    path.write_bytes((QUICKSTART / "stg4.ogg").read_bytes())
    assert probe(os.fsencode(path))["codec"] == "vorbis"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello world\n" * 3000, "no audio that can be read: Invalid data found when processing input"),
        (
            b"RIFF\xff\xff\xff\xffWAVEfmt ",
            "no audio that can be read: Invalid data found when processing input",
        ),
        ((QUICKSTART / "stg4.ogg").read_bytes()[:300], "no audio that can be read: End of file"),
    ],
)
def test_the_decoders_own_words(tmp_path, content, reason):
    path = tmp_path / "x.mp3"
    path.write_bytes(content)
    assert probe(os.fsencode(path))["reason"] == reason


def test_a_playlist_opens_nothing(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1, 8_000, 1), 8_000)
    path = tmp_path / "x.mp3"
    path.write_text(f"ffconcat version 1.0\nfile '{tmp_path}/a.wav'\n")
    assert probe(os.fsencode(path))["reason"]


def test_zero_length_audio_is_left_to_the_decoder(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0, 44_100, 1), 44_100)
    facts = probe(os.fsencode(tmp_path / "a.wav"))
    assert (facts["reason"], facts["duration_from"]) == (None, "size") and facts["duration_s"] < 0.001


def test_quick_hash_covers_both_ends_and_the_size(tmp_path):
    path, size = tmp_path / "a.wav", 4 * probing.MIB
    hashes = []
    for edit in (None, 0, size - 1, size // 2):
        content = bytearray(size)
        if edit is not None:
            content[edit] = 1
        path.write_bytes(content)
        hashes.append(probe(os.fsencode(path))["quick"])
    path.write_bytes(bytes(size + 1))
    hashes.append(probe(os.fsencode(path))["quick"])
    assert hashes[3] == hashes[0]
    assert len(set(hashes)) == 4


def test_a_failing_disk_is_not_the_files_fault(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(60, 44_100, 1), 44_100)

    class Failing:
        def __init__(self, raw, after):
            self.raw, self.left = raw, after

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.raw.close()

        def __getattr__(self, name):
            return getattr(self.raw, name)

        def read(self, count):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, "Input/output error")
            return self.raw.read(count)

    for after in (0, 1):
        raw = open(path, "rb")  # noqa: SIM115  closed by Failing
        monkeypatch.setattr(probing, "open_bytes", lambda _, raw=raw, after=after: Failing(raw, after))
        facts = probe(os.fsencode(path))
        assert facts["reason"] == "unreadable: Input/output error"
        assert facts["quick"] is None
    monkeypatch.undo()
    assert probe(b"/nowhere.mp3")["reason"] == "unreadable: No such file or directory"


def test_reads_between_the_ends_fail_as_reads(tmp_path):
    class Broken:
        def seek(self, at):
            return at

        def read(self, count):
            raise OSError(errno.EIO, "Input/output error")

    source = probing._Source(Broken(), 100, b"h" * 10, b"t" * 10)
    assert source.read(20) == b"h" * 10
    with pytest.raises(OSError):
        source.read(1)
    assert source.error.errno == errno.EIO
    assert source.seek(-5, 2) == 95
    assert source.read(20) == b"t" * 5
    assert source.read(20) == b""
    assert source.seek(-1) == -1


def test_ids_come_from_name_and_content():
    one = recording_id(b"a/b.mp3", 10, "q")
    assert one == recording_id(b"a/b.mp3", 10, "q")
    assert len({one, recording_id(b"a/c.mp3", 10, "q"), recording_id(b"a/b.mp3", 11, "q")}) == 3
    assert recording_id(b"a/b.mp3", 10, "q", "s") != one


def test_full_sha256_raises_what_the_disk_raises(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert full_sha256(os.fsencode(tmp_path / "a")).startswith("ba7816bf")
    with pytest.raises(OSError):
        full_sha256(os.fsencode(tmp_path / "b"))


def test_of_a_file_that_is_no_audio_only_the_ends_are_read(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 40 << 20, np.uint8).tobytes())
    read, real = [], probing.open_bytes

    class Counting:
        def __init__(self, file):
            self.file, self.seek, self.fileno = file, file.seek, file.fileno

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def read(self, count):
            data = self.file.read(count)
            read.append(len(data))
            return data

    monkeypatch.setattr(probing, "open_bytes", lambda path: Counting(real(path)))
    assert probe(os.fsencode(path))["reason"].startswith("no audio that can be read")
    assert 2 << 20 <= sum(read) < 10 << 20
