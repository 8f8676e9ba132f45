"""A demuxer that fails: one error is one hole, and a container that leads nowhere ends the recording."""

import av
import pytest

from stages.label.decoding.recording import MAX_DEMUX_ERRORS
from tests.stages.label.decoding.holes import judged


class Demuxer:
    """A container that gives the real one's packets, but for `faults` errors in a row before packet
    `place`."""

    def __init__(self, container, faults):
        self._packets, self._faults, self._place = container.demux(audio=0), dict(faults), 0
        self.format, self.duration = container.format, container.duration

    def demux(self, stream):
        while True:
            if self._faults.get(self._place, 0):
                self._faults[self._place] -= 1
                raise av.error.InvalidDataError(1, "torn")
            packet = next(self._packets, None)
            if packet is None:
                return
            self._place += 1
            yield packet


class TestDemuxer:
    def heard(self, tmp_path, long, faults):
        header, packets = long
        (tmp_path / "x.flac").write_bytes(header + b"".join(packets[:400]))

        def tamper(decoding):
            decoding._container = Demuxer(decoding._container, faults)

        decoding, samples, why = judged(tmp_path / "x.flac", tamper)
        return decoding.damaged, decoding.packets, samples // 576, why

    def test_errors_in_a_row_are_one_hole(self, tmp_path, long):
        for place in (0, 100):
            assert self.heard(tmp_path, long, {place: MAX_DEMUX_ERRORS - 1}) == (1, 401, 400, None)

    def test_each_hole_counts_and_the_next_one_has_all_its_tries(self, tmp_path, long):
        faults = {100: MAX_DEMUX_ERRORS - 1, 200: MAX_DEMUX_ERRORS - 1, 300: 1}
        assert self.heard(tmp_path, long, faults) == (3, 403, 400, None)

    def test_a_container_that_leads_nowhere_ends_the_recording(self, tmp_path, long):
        assert MAX_DEMUX_ERRORS == 16
        assert self.heard(tmp_path, long, {100: 15}) == (1, 401, 400, None)
        damaged, packets, frames, why = self.heard(tmp_path, long, {100: 16})
        assert (damaged, packets, why) == (1, 101, None), "cut there, which is no damage"
        assert frames == 100

    def test_memory_that_runs_out_is_nobodys_damage(self, tmp_path, long, monkeypatch):
        monkeypatch.setattr(av.error, "InvalidDataError", av.error.MemoryError)
        with pytest.raises(MemoryError):
            self.heard(tmp_path, long, {100: 1})
