"""What gathering statistics costs while labelling: milliseconds a second of audio, one core. `python -m
tests.bench.bench_statistics`.

For comparison, what the stages themselves cost: decoding a stereo Vorbis file, and the constant-Q frames.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import time
from collections.abc import Callable

import numpy as np
import soundfile
import torch

from stages.label.decode import Decode
from stages.label.statistics import codes, pitch, stereo, wave
from stages.signal.cqt import ConstantQ, CqtSpec
from tests.excerpt import MUSIC
from tests.stages.label.decoding.sounds import outcome

ROUNDS = 7
AUDIO_S = 30.0


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU milliseconds of the best of some rounds, a second of audio."""
    work()
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best * 1e3 / AUDIO_S


def main() -> None:
    torch.set_num_threads(1)
    path = MUSIC / "stg1.ogg"
    decoder = Decode().open()
    whole, _ = outcome(decoder, path)
    segment = np.rint(whole[: int(AUDIO_S * 24_000)] * 32768).astype(np.int16)
    planes = np.ascontiguousarray(soundfile.read(path, frames=int(AUDIO_S * 44_100), dtype="float32")[0].T)
    transform = ConstantQ(CqtSpec())
    context = transform.spec.context_samples
    padded = torch.from_numpy(np.pad(segment / np.float32(32768), context))[None]
    frames = transform.frames(padded, context, len(segment) // 320)[0].numpy()
    labels = np.random.default_rng(0).integers(0, 1024, (2250, 8)).astype(np.uint16)
    rows = {
        "levels": lambda: wave.levels(segment),
        "loudness": lambda: wave.loudness(segment),
        "bandwidth": lambda: wave.bandwidth(segment),
        "stereo (in the decoder)": lambda: stereo.products(planes),
        "of codes": lambda: codes.of_codes(labels, 1024),
        "of cqt": lambda: pitch.of_cqt(frames, frames, 32.7, 48, 0),
        "cqt itself": lambda: transform.frames(padded, context, len(segment) // 320),
    }
    for name, work in rows.items():
        print(f"{name:24} {cpu_ms(work):7.3f} ms a second of audio")


if __name__ == "__main__":
    main()
