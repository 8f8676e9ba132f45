"""Real encoders for the tests of decoding."""

import os
from fractions import Fraction

import av
import numpy as np
import soundfile

from stages.label.base import Sample
from stages.label.decode import Source
from stages.label.decoding.source import quick_hash


def source(path, recording="r"):
    seen = os.stat(path)
    return Source(recording, os.fsencode(path), seen.st_size, seen.st_mtime_ns, quick_hash(path))


def outcome(decoder, path):
    """(the recording's samples as float in full scale, its last item)."""
    *samples, last = decoder([source(path)])
    assert all(isinstance(sample, Sample) for sample in samples)
    waves = [np.frombuffer(sample.members["wav"][44:], "<i2") for sample in samples]
    return (np.concatenate(waves) if waves else np.zeros(0, "<i2")) / 32768, last


def tone(rate_hz, seconds=2.0, hz=440.0, amplitude=0.5, channels=1):
    wave = amplitude * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)
    return np.tile(wave[:, None], (1, channels))


def sweep(rate_hz, seconds=2.0, channels=1):
    """300 to 1,300 Hz at -6 dBFS: nowhere like itself, so a shift of a few samples shows."""
    time_s = np.arange(int(rate_hz * seconds)) / rate_hz
    return np.tile(0.5 * np.sin(2 * np.pi * (300 + 500 / seconds * time_s) * time_s)[:, None], (1, channels))


def encode(path, codec, wave_NC, rate_hz, layout, **options):
    """Write with a real encoder (PyAV's, Vorbis libsndfile's); the path's extension names the container."""
    if codec == "libvorbis":  # PyAV's wheel has only an experimental one
        with soundfile.SoundFile(path, "w", rate_hz, wave_NC.shape[1], "VORBIS", format="OGG") as file:
            for start in range(0, len(wave_NC), 4096):  # libsndfile overflows its stack on long writes
                file.write(wave_NC[start : start + 4096])
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout, options=options)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave_NC.T, np.float32), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        for packet in stream.encode(frame):
            container.mux(packet)
        container.mux(stream.encode(None))
    return path
