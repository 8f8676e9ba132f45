"""How a file is opened and closed: what is refused at once, in which words, and how it is read."""

import pytest
import soundfile

from stages.label.base import RejectRecording
from stages.label.decoding.recording import Decoding, File
from tests.stages.label.decoding.sounds import encode, tone


@pytest.fixture
def wav(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(8_000, 60), 8_000)
    return bytes(tmp_path / "x.wav")


def test_what_libav_cannot_open_is_refused_in_its_words(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"garbage" * 99)
    with pytest.raises(
        RejectRecording, match="^no audio that can be read: Invalid data found when processing input"
    ):
        Decoding(File(bytes(tmp_path / "x.wav")), 3600.0)


def test_a_codec_that_nobody_knows_is_refused(tmp_path):
    path = encode(tmp_path / "x.mka", "pcm_s16le", tone(8_000), 8_000, "mono")
    known = b"A_PCM/INT/LIT"
    assert path.read_bytes().count(known) == 1
    path.write_bytes(path.read_bytes().replace(known, b"A_UNKNOWN/NEW"))
    with pytest.raises(RejectRecording, match="^no decoder for its audio stream$"):
        Decoding(File(bytes(path)), 3600.0)


def test_a_file_is_read_in_pieces_of_256_kib(wav):
    class Counting(File):
        counts = set()

        def read(self, count):
            self.counts.add(count)
            return super().read(count)

    decoding = Decoding(Counting(wav), 3600.0)
    assert sum(len(block) for block, _ in decoding.blocks(lambda facts: None)) == 60 * 8_000
    assert Counting.counts == {5, 32, 1 << 16, 1 << 18}, "looks, then large pieces"
    decoding.close()


def test_a_closed_decoding_has_let_go_of_its_container(wav):
    decoding = Decoding(File(wav), 3600.0)
    decoding.close()
    with pytest.raises(AssertionError, match="not open"):
        next(decoding._container.demux())
