"""What is missing or broken in a recording, counted packet by packet: few are scratches, more reject it."""

from fractions import Fraction

import av
import numpy as np
import pytest

from stages.label.decoding.recording import WAVER_S, Decoding, File
from tests.stages.label.decoding.holes import FRAME_S, NOISE, judged, without
from tests.wild.pieces import pages as split


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Ogg pages of Opus, one packet of 10 ms in each after the two of the header."""
    path = tmp_path_factory.mktemp("pages") / "x.opus"
    with av.open(str(path), "w", format="ogg", options={"page_duration": "10000"}) as container:
        stream = container.add_stream(
            "libopus", rate=48_000, layout="mono", options={"frame_duration": "10", "b": "8000"}
        )
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(NOISE[:576_000].T, np.float32), "fltp", "mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        for packet in stream.encode(frame):
            container.mux(packet)
        container.mux(stream.encode(None))
    return split(path.read_bytes())


class TestGaps:
    @pytest.mark.parametrize(
        "holes, kept",
        [
            ([], True),
            ([(300, 1)], True),
            ([(300, 8)], True),  # 0.57 %
            ([(300, 8), (900, 8)], False),
            ([(300, 4), (600, 5), (900, 5)], True),  # 1 % exactly
            ([(300, 4), (600, 5), (900, 6)], False),
            ([(300, 14)], True),
            ([(300, 15)], False),
        ],
    )
    def test_every_gap_of_a_recording_counts(self, tmp_path, long, holes, kept):
        header, packets = long
        (tmp_path / "x.flac").write_bytes(header + b"".join(without(packets, holes)))
        decoding, samples, why = judged(tmp_path / "x.flac")
        lost = sum(count for _, count in holes)
        assert samples == (1400 - lost) * 576
        assert (decoding.damaged, decoding.packets) == (lost, 1400)
        expected = f"{lost} of 1400 packets damaged: {lost * FRAME_S:.1f} s missing"
        assert why == (None if kept else expected)

    def test_a_recording_that_begins_late_has_lost_nothing_by_it(self, tmp_path, long):
        header, packets = long
        (tmp_path / "x.flac").write_bytes(header + b"".join(without(packets, [(0, 20), (300, 8)])))
        decoding, _, why = judged(tmp_path / "x.flac")
        assert (decoding.damaged, decoding.packets, why) == (8, 1380, None)
        assert decoding._lost_s == pytest.approx(8 * FRAME_S)

    def test_several_gaps_of_ogg_pages_add_up(self, tmp_path, pages):
        whole = len(pages) - 2
        for holes, kept in (([(500, 7)], True), ([(500, 7), (1000, 7)], False)):
            (tmp_path / "x.opus").write_bytes(b"".join(without(pages, holes)))
            decoding, _, why = judged(tmp_path / "x.opus")
            lost = sum(count for _, count in holes)
            assert (decoding.damaged, decoding.packets) == (lost, whole)
            assert why == (None if kept else f"{lost} of {whole} packets damaged: 0.1 s missing")

    def test_each_link_of_a_chained_file_is_judged_by_its_own_stamps(self, tmp_path, pages):
        for holes, lost in (([], 0), ([(300, 9)], 9)):
            links = [*pages[:1002], *without(pages, holes), *pages]
            (tmp_path / "x.opus").write_bytes(b"".join(links))
            decoding, _, why = judged(tmp_path / "x.opus")
            assert (decoding.damaged, why) == (lost, None)

    def test_one_page_of_ten_milliseconds_is_missed(self, tmp_path, pages):
        for count in (1, 2):
            (tmp_path / "x.opus").write_bytes(b"".join(without(pages, [(500, count)])))
            decoding, *_ = judged(tmp_path / "x.opus")
            assert decoding.damaged == count

    def test_where_stamps_do_not_count_samples_a_jump_is_no_damage(self, tmp_path):
        path = tmp_path / "x.mka"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8_000, layout="mono")
            for start_s in (0, 6, 14):  # 6 s each: two seconds are missing before the third
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), "s16", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 8_000, start_s * 8_000, Fraction(1, 8_000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        decoding, samples, why = judged(path)
        assert (why, decoding.damaged, samples) == (None, 0, 144_000)


class TestStamps:
    """Stamps of blocks, against the seconds decoded before each of them."""

    @pytest.fixture
    def lost_s(self, tmp_path, pages):
        (tmp_path / "x.opus").write_bytes(b"".join(pages[:9]))
        file = File(bytes(tmp_path / "x.opus"))
        decoding = Decoding(file, 3600.0)

        def lost(*stamps):
            decoding._lost_s, decoding._zero_s = 0.0, None
            for stamp_s, decoded_s in stamps:
                decoding._look_for_a_gap(stamp_s, decoded_s)
            return decoding._lost_s

        yield lost
        decoding.close()
        file.close()

    def test_they_may_waver_both_ways_and_by_as_much_as_is_allowed(self, lost_s):
        assert lost_s((0.0, 0.0), (4.99, 5.0), (10.006, 10.0)) == 0, "by 16 ms from one to the next"
        assert WAVER_S == 0.015
        assert lost_s((0.0, 0.0), (WAVER_S, 0.0)) == 0

    @pytest.mark.parametrize("back_s, lost", [(1.0, 0.0), (1.5, 0.5)])
    def test_more_than_a_second_back_a_chained_file_has_begun_anew(self, lost_s, back_s, lost):
        assert lost_s((0.0, 0.0), (5.0 - back_s, 5.0), (10.5 - back_s, 10.0)) == lost


class TestBroken:
    """Packets that come but cannot be decoded."""

    @staticmethod
    def broken(packet):
        return packet[:40] + bytes(byte ^ 0xFF for byte in packet[40:48]) + packet[48:]

    def judged(self, path, count, broken, torn=0):
        """`count` FLAC packets in a container that tells where each begins; `torn` bytes are left of a last
        one."""
        with av.open(str(path), "w", format="matroska") as container:
            stream = container.add_stream("flac", rate=8_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(NOISE[: count * 576].T, np.float32), "fltp", "mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = 8_000, 0, Fraction(1, 8_000)
            for place, packet in enumerate([*stream.encode(frame), *stream.encode(None)]):
                data = bytes(packet)
                data = self.broken(data) if place in broken else data
                data = data[:torn] if torn and place == count - 1 else data
                copy = av.Packet(data)
                copy.pts = copy.dts = packet.pts
                copy.time_base, copy.stream = packet.time_base, stream
                container.mux(copy)
        return judged(path)

    @pytest.mark.parametrize(
        "broken, torn, why",
        [
            ([], 0, None),
            ([], 500, None),
            ([19], 0, None),  # nothing comes after it: as if the file had been cut there
            ([9], 0, "1 of 20 packets damaged: "),
            ([0], 0, "1 of 20 packets damaged: "),
            ([9], 500, "2 of 20 packets damaged: "),
        ],
    )
    def test_a_broken_packet_is_no_damage_only_where_a_file_was_cut(self, tmp_path, broken, torn, why):
        decoding, samples, said = self.judged(tmp_path / "x.mka", 20, broken, torn)
        bad = len(broken) + bool(torn)
        assert (decoding.damaged, decoding.packets, samples) == (bad, 20, (20 - bad) * 576)
        assert (
            said is None if why is None else said.startswith(why + "Invalid data found when processing input")
        )

    def test_one_in_a_hundred_may_be_broken(self, tmp_path):
        for broken, kept in (([40, 41], True), ([40, 90, 140], False)):
            decoding, _, why = self.judged(tmp_path / "x.mka", 200, broken)
            assert (decoding.damaged, why is None) == (len(broken), kept)

    def test_of_a_recording_without_a_whole_packet_the_first_error_is_told(self, tmp_path):
        decoding, samples, why = self.judged(tmp_path / "x.mka", 20, range(20))
        assert (decoding.damaged, samples) == (20, 0)
        assert why.startswith("nothing decodable: Invalid data found when processing input")

    def test_a_broken_packet_counts_by_its_bytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(self, "broken", lambda packet: TestBroken.broken(packet) + bytes(9 * len(packet)))
        decoding, samples, why = self.judged(tmp_path / "x.mka", 200, [150])
        assert (decoding.damaged, decoding.packets, samples) == (10, 209, 199 * 576)
        assert why.startswith("10 of 209 packets damaged: ")
        decoding, *_ = self.judged(tmp_path / "x.mka", 200, [50, 100, 150])
        assert (decoding.damaged, decoding.packets) == (30, 227)
        decoding, *_ = self.judged(tmp_path / "x.mka", 200, [0])
        assert decoding.damaged == 1, "nothing was decoded yet to compare its size with"


class TestGapsInShortRecordings:
    """A block is judged at its borders: what is missing inside the first or the last one counts too."""

    @pytest.mark.parametrize(
        "frames, gone", [(20, (9, 1)), (60, (2, 3)), (100, (90, 3)), (100, (40, 3)), (100, (10, 80))]
    )
    def test_what_is_missing_inside_a_block_counts(self, tmp_path, long, frames, gone):
        header, packets = long
        (tmp_path / "x.flac").write_bytes(header + b"".join(without(packets[:frames], [gone])))
        decoding, _, why = judged(tmp_path / "x.flac")
        assert decoding._lost_s == pytest.approx(gone[1] * FRAME_S)
        assert why == f"{gone[1]} of {frames} packets damaged: {gone[1] * FRAME_S:.1f} s missing"

    def test_a_gap_counts_beside_a_torn_end(self, tmp_path, long):
        header, packets = long
        (tmp_path / "x.flac").write_bytes(
            header + b"".join([*packets[:9], *packets[10:19], packets[19][:500]])
        )
        decoding, samples, why = judged(tmp_path / "x.flac")
        assert (decoding.damaged, decoding.packets, samples) == (2, 20, 18 * 576)
        assert why.startswith("2 of 20 packets damaged: Invalid data")
