"""A long recording packet by packet, less some of them, and what a decoding makes of it."""

import re

import av
import numpy as np
import pytest

from stages.label.base import RejectRecording
from stages.label.decoding.recording import Decoding, File
from tests.stages.label.decoding.sounds import encode

FRAME_S = 576 / 8_000  # of the FLAC encoder at 8 kHz
NOISE = np.random.default_rng(0).normal(0, 0.1, (806_400, 1))  # 1,400 such frames


def judged(path, tamper=lambda decoding: None):
    """(the decoding after its end, samples decoded, why it is refused or None: the part about packets)."""
    file, samples, why = File(str(path).encode()), 0, None
    decoding = Decoding(file, 3600.0)
    container = decoding._container
    tamper(decoding)
    try:
        for block, _ in decoding.blocks(lambda facts: None):
            samples += len(block)
    except RejectRecording as refused:
        why = str(refused)
        if said := re.fullmatch(r"([\d.]+) of ([\d.]+) s of its sound are damaged or missing \((.+)\)", why):
            why, share = said[3], decoding.damaged / decoding.packets
            assert float(said[1]) == pytest.approx(share * float(said[2]), abs=0.1)
    container.close()
    file.close()
    return decoding, samples, why


def flac(path, frames=1400, rate_hz=8_000):
    """(header, frames) of a FLAC file of noise."""
    encode(path, "flac", NOISE[: frames * 576], rate_hz, "mono")
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    data = path.read_bytes()
    assert len(packets) == frames
    return data[: data.index(packets[0])], packets


def without(packets, holes):
    """The packets less `count` of them from `first` on, for each (first, count)."""
    gone = {first + i for first, count in holes for i in range(count)}
    return [packet for place, packet in enumerate(packets) if place not in gone]
