"""Decode + resample: the stage against the best bare loop of soundfile or PyAV with soxr, on the same files
and one core.

The loops are as fast as one gets: no checks, no statistics, nothing kept. The stage also checks, hashes,
packs wav files and measures; its child process is on the same core. CPU seconds are compared, interleaved,
the best of some rounds each.
"""

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from stages.label.decode import Decode
from stages.label.decoding.recording import Decoding, File, resampled, to_int16
from stages.label.decoding.source import Source, quick_hash
from tests.bench.measure import ROOT, Row, tree_cpu_s

RATE_HZ = 24_000
BLOCK = 1 << 18
MINUTES = 5.0


def make_files(folder: Path, minutes: float = MINUTES) -> dict[str, Path]:
    """One stereo piece of real music in each format, at 44.1 kHz (Opus: 48)."""
    parts, need = [], int(minutes * 60 * 44_100)
    for path in sorted((ROOT / "examples" / "quickstart").glob("*.ogg")):
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        wave = np.repeat(wave, 2, 1)[:, :2] if wave.shape[1] == 1 else wave
        parts.append(wave if rate == 44_100 else soxr.resample(wave, rate, 44_100))
        need -= len(parts[-1])
        if need <= 0:
            break
    wave = np.clip(np.concatenate(parts)[: int(minutes * 60 * 44_100)], -1, 1)
    writers = {
        "wav": ("WAV", "PCM_16"),
        "flac": ("FLAC", "PCM_16"),
        "vorbis": ("OGG", "VORBIS"),
        "mp3": ("MP3", None),
        "opus": ("OGG", "OPUS"),
    }
    found = {}
    for name, (form, subtype) in writers.items():
        found[name] = folder / f"music.{name}"
        rate = 48_000 if name == "opus" else 44_100
        data = soxr.resample(wave, 44_100, rate) if name == "opus" else wave
        with soundfile.SoundFile(found[name], "w", rate, 2, subtype=subtype, format=form) as file:
            # in one piece, libsndfile's Vorbis overflows the stack
            for start in range(0, len(data), BLOCK):
                file.write(data[start : start + BLOCK])
    found["m4a"] = folder / "music.m4a"
    with av.open(str(found["m4a"]), "w") as out:
        stream = out.add_stream("aac", rate=44_100, layout="stereo", bit_rate=192_000)
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(wave[start : start + 1024].T), "fltp", "stereo"
            )
            frame.sample_rate, frame.pts = 44_100, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return found


def with_soundfile(path: Path) -> int:
    samples = 0
    with soundfile.SoundFile(path) as file:
        resampler = soxr.ResampleStream(file.samplerate, RATE_HZ, 1, dtype="float32", quality="HQ")
        for block in file.blocks(5 * file.samplerate, dtype="float32", always_2d=True):
            samples += len(resampler.resample_chunk(block.mean(1)))
        return samples + len(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def with_pyav(path: Path) -> int:
    """libswresample does the channels' mean only; the rate is soxr's."""
    samples, held, resampler, mono = 0, [], None, av.AudioResampler(format="flt", layout="mono")
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            resampler = resampler or soxr.ResampleStream(
                frame.sample_rate, RATE_HZ, 1, dtype="float32", quality="HQ"
            )
            held += [f.to_ndarray()[0] for f in mono.resample(frame)]
            if len(held) >= 200:
                samples += len(resampler.resample_chunk(np.concatenate(held)))
                held = []
        held += [f.to_ndarray()[0] for f in mono.resample(None)]
    return samples + len(resampler.resample_chunk(np.concatenate(held), last=True))


def with_pyav_whole_blocks(path: Path) -> int:
    """libav's own FIFO gathers frames; numpy takes the mean."""
    samples, resampler, fifo = 0, None, av.audio.fifo.AudioFifo()

    def mean(frame: av.AudioFrame) -> np.ndarray:
        values, channels = frame.to_ndarray(), frame.layout.nb_channels
        planes = values if frame.format.is_planar else values.reshape(-1, channels).T
        scale = np.float32((1 / 32768 if frame.format.name.startswith("s16") else 1) / channels)
        return (planes[0].astype(np.float32) + planes[1]) * scale

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            resampler = resampler or soxr.ResampleStream(
                frame.sample_rate, RATE_HZ, 1, dtype="float32", quality="HQ"
            )
            frame.pts = None
            fifo.write(frame)
            if fifo.samples >= 5 * frame.sample_rate:
                samples += len(resampler.resample_chunk(mean(fifo.read())))
    return samples + len(resampler.resample_chunk(mean(fifo.read()), last=True))


BARE: dict[str, Callable[[Path], int]] = {
    "soundfile": with_soundfile,
    "PyAV": with_pyav,
    "PyAV in blocks": with_pyav_whole_blocks,
}


def measure(folder: Path, minutes: float, rounds: int) -> list[Row]:
    files = make_files(folder, minutes)
    core, before = min(os.sched_getaffinity(0)), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    decoder = Decode().open()
    try:
        return [_format(decoder, name, path, rounds) for name, path in files.items()]
    finally:
        decoder.close()
        os.sched_setaffinity(0, before)


def _format(decoder, name: str, path: Path, rounds: int) -> Row:
    facts = path.stat()
    source = Source("0" * 16, os.fsencode(path), facts.st_size, facts.st_mtime_ns, quick_hash(path))

    def stage() -> int:
        *samples, outcome = decoder([source])
        assert type(outcome).__name__ == "Kept", outcome
        return sum(s.row["samples"] for s in samples)

    def seconds(work: Callable[[], int]) -> tuple[float, int]:
        begun = tree_cpu_s()
        samples = work()
        return tree_cpu_s() - begun, samples

    def child() -> int:
        """What the stage's own process does, without the pipe, the checks and the packing."""
        file = File(os.fsencode(path))
        decoding = Decoding(file, 1e9)
        try:
            return sum(
                len(to_int16(b)) for b in resampled(decoding.blocks(lambda facts: None), RATE_HZ, "HQ")
            )
        finally:
            decoding.close()
            file.close()

    ways = {"stage": stage, "its decoder": child}
    for label, loop in BARE.items():
        if not (label == "soundfile" and name == "m4a"):
            ways[label] = lambda loop=loop: loop(path)
    best, lengths = dict.fromkeys(ways, float("inf")), {}
    stage()  # the child starts
    for _ in range(rounds):
        for label, work in ways.items():
            took, lengths[label] = seconds(work)
            best[label] = min(best[label], took)
    audio_s = lengths["stage"] / RATE_HZ
    winner = min((label for label in ways if label in BARE), key=best.__getitem__)
    share = best[winner] / best["stage"]
    speeds = f"{audio_s / best['stage']:.0f}× real time with hashing, checks and statistics; "
    speeds += (
        f"its decoder alone {audio_s / best['its decoder']:.0f}×, {winner} {audio_s / best[winner]:.0f}×"
    )
    return Row(f"decode + resample, {name}", f"{share:.0%} ({speeds})", "≥ 90 %", share >= 0.9)
