"""Known tags: recognised, measured by their own sizes, and left out of what libav is given."""

import io

import pytest

from stages.label.decoding.tags import View, before_the_audio, frame_bytes, id3v2_bytes, sound
from tests.wild.pieces import ape, id3v1, id3v2, lyrics3, picture

FRAME = b"\xff\xfb\x90\x00" + bytes(range(1, 200)) + b"\x55" * 214  # 417 bytes: MPEG 1, layer 3, 128 kbit/s
FRAMES = FRAME * 5


def kept(data: bytes, start: int = 0) -> bytes:
    return b"".join(data[a:b] for a, b in sound(io.BytesIO(data), start, len(data)))


class TestSizes:
    @pytest.mark.parametrize(
        "head, size",
        [
            (id3v2(b"x" * 300)[:10], 320),
            (id3v2(b"x" * 300, footer=True)[:10], 330),
            (b"ID3\x04\x00\x00\x00\x02\x01\x7f", 10 + (2 << 14 | 1 << 7 | 127)),
            (b"ID3\x04\x00\x00\x01\x00\x00\x00", 10 + (1 << 21)),
            (b"ID3\x04\x00\x00\x80\x00\x00\x00", 0),  # no syncsafe number
            (b"ID3\x01\x00\x00\x00\x00\x00\x01", 0),
            (b"ID3\x05\x00\x00\x00\x00\x00\x01", 0),
            (b"ID3\xff\x00\x00\x00\x00\x00\x01", 0),
            (b"ID3\x04\x01\x00\x00\x00\x00\x01", 0),
            (b"ID3\x04\x00\x08\x00\x00\x00\x01", 0),
            (b"ID3\x04\x00\xf0\x00\x00\x00\x01", 21),
            (b"ID3\x04\xff\x00\x00\x00\x00\x01", 0),
            (b"ID3\x04\x00\x00\x00", 0),
            (b"TAG" + bytes(7), 0),
        ],
    )
    def test_an_id3v2_tag_states_its_own(self, head, size):
        assert id3v2_bytes(head) == size

    @pytest.mark.parametrize(
        "head, size",
        [
            ("fffb9000", 417), ("fffb9200", 418), ("fffb9400", 384), ("fffbe800", 1440), ("fffb1000", 104),
            ("fffd8400", 384), ("fff38000", 208), ("ffe38000", 417), ("ffff9400", 288), ("fff74000", 136),
            ("fff15080042000", 33), ("fff95080042000", 33), ("ffe15080042000", 0), ("fffb0000", 0),
            ("fffbf000", 0), ("fffb9c00", 0), ("ffeb9000", 0), ("fefb9000", 0), ("ff1b9000", 0),
        ],
    )  # fmt: skip
    def test_a_frame_states_its_own_by_its_header(self, head, size):
        # 144 * bitrate / rate + padding for layers 2 and 3 of MPEG 1, 72 for layer 3 of the later ones,
        # (12 * bitrate / rate + padding) * 4 for layer 1: ISO 11172-3, 2.4.3.1; ADTS: ISO 14496-3, 1.A.2
        data = bytes.fromhex(head).ljust(6, b"\0")
        assert frame_bytes(data) == size
        assert frame_bytes(data[:5]) == 0


class TestBefore:
    @pytest.mark.parametrize(
        "tags",
        [b"", id3v2(b"a"), id3v2(b"a", footer=True) + id3v2(b"b", 3), ape(b"a"), id3v2(b"") + ape(b"a")],
    )
    def test_all_that_stand_before_the_audio_are_skipped(self, tags):
        data = tags + FRAMES
        assert before_the_audio(io.BytesIO(data), len(data)) == len(tags)

    def test_a_tag_that_is_all_of_the_file_is_left_to_libav(self):
        for data in (id3v2(b"a"), id3v2(b"a" * 500)[:100], b"ID3", b""):
            assert before_the_audio(io.BytesIO(data), len(data)) == 0

    def test_a_footer_of_ape_alone_is_no_beginning(self):
        data = ape(b"", header=False)[-32:] + FRAMES
        assert before_the_audio(io.BytesIO(data), len(data)) in (0, 32)


class TestSound:
    @pytest.mark.parametrize(
        "tag",
        [
            id3v2(picture(9_000)), id3v2(picture(9_000), 2), id3v2(picture(9_000), footer=True),
            ape(picture(9_000)), ape(picture(9_000), header=False), ape(picture(9_000), 1000, False),
            lyrics3(b"la " * 500), id3v1(), id3v1(b"\0\0\0\0"), ape(b"x") + id3v1() + id3v2(b"y"),
            id3v2(picture(700)) + bytes(3_000),
        ],
    )  # fmt: skip
    def test_a_tag_between_frames_is_left_out_and_nothing_else(self, tag):
        assert kept(FRAMES + tag + FRAMES) == FRAMES + FRAMES
        assert kept(FRAMES + tag) == FRAMES
        assert kept(FRAMES + tag + FRAMES + tag + FRAMES) == FRAMES * 3

    @pytest.mark.parametrize(
        "words",
        [
            b"ID3",
            b"ID3\x03\x00\x00\x00\x00\xff\x00",
            b"ID3\x41\x9c\x55\x00\x00\x01\x04",
            b"TAG",
            b"APETAGEX" + bytes(24),
            b"TAG" + b"x" * 125,
        ],  # fmt: skip
    )
    def test_what_only_looks_like_one_stays(self, words):
        assert kept(FRAMES + words + FRAMES) == FRAMES + words + FRAMES

    def test_a_size_that_is_wrong_costs_no_frames(self):
        liar = b"ID3\x03\x00\x00\x00\x02\x00\x00" + b"PRIV" + bytes(90)  # says 32 kB, and has 94
        assert kept(FRAMES + liar + FRAMES * 3) == FRAMES + FRAMES * 3
        assert kept(FRAMES * 3 + b"ID3\x03\x00\x00\x00\x02\x00\x00" + b"cut") == FRAMES * 3

    def test_it_begins_where_it_is_told_to(self):
        assert kept(id3v2(b"x") + FRAMES, start=len(id3v2(b"x"))) == FRAMES

    def test_a_mark_across_two_chunks_is_seen(self, monkeypatch):
        from stages.label.decoding import tags

        tag = ape(b"picture")
        for chunk in range(len(FRAMES) - 9, len(FRAMES) + 9):
            monkeypatch.setattr(tags, "CHUNK", chunk)
            assert kept(FRAMES + tag + FRAMES) == FRAMES * 2

    def test_a_file_of_tags_alone_is_not_empty_to_libav(self):
        assert kept(id3v1()) == b"" and sound(io.BytesIO(id3v1()), 0, 128) != []


class TestView:
    data = bytes(range(100))

    def view(self):
        return View(io.BytesIO(self.data), [(10, 20), (30, 35), (90, 100)])

    def test_it_reads_its_ranges_as_one_file(self):
        view, read = self.view(), b""
        assert view.size == 25 and view.tell() == 0
        while part := view.read(7):
            read += part
        assert read == self.data[10:20] + self.data[30:35] + self.data[90:] and view.tell() == 25

    def test_it_is_sought_like_one(self):
        view = self.view()
        assert (view.seek(12), view.read(9), view.tell()) == (12, self.data[32:35], 15)
        assert (view.seek(-5, 2), view.read(9), view.seek(-4, 1), view.read(2)) == (
            20, self.data[95:], 21, self.data[96:98],
        )  # fmt: skip
        assert view.seek(-1) == -1 and view.tell() == 23, "libav looks before the beginning"
        assert view.seek(99) == 99 and view.read(1) == b""
