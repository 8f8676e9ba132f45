"""Today's two scripts, as people run them: `python -m tests.bench.today encodec|cqt [WEIGHTS] FILE…`.

File by file: read, resample, the published `encodec` package at 6 kbps or nnAudio's CQT layer over the whole
file, save npy. torch has all cores. Prints JSON: audio seconds, wall and CPU seconds of the loop, models
loaded before.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from tests.bench.measure import span

RATE_HZ = 24_000


def codes(weights: Path) -> Callable[[torch.Tensor], np.ndarray]:
    from tests.encodec_weights import load_model

    model = load_model(weights).eval()
    return lambda wave_N: model.encode(wave_N[None, None])[0][0][0].numpy().astype(np.uint16)


def cqt() -> Callable[[torch.Tensor], np.ndarray]:
    from nnAudio.features.cqt import CQT

    layer = CQT(sr=RATE_HZ, hop_length=320, fmin=32.7, n_bins=336, bins_per_octave=48, verbose=False)
    return lambda wave_N: layer(wave_N[None])[0].numpy().T.astype(np.float16)


def main(what: str, *arguments: str) -> None:
    label = codes(Path(arguments[0])) if what == "encodec" else cqt()
    audio_s = 0.0
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), span() as taken:
        for number, path in enumerate(arguments[what == "encodec" :]):
            wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
            wave = soxr.resample(wave.mean(1), rate, RATE_HZ)
            np.save(Path(folder) / f"{number}.npy", label(torch.from_numpy(wave)))
            audio_s += len(wave) / RATE_HZ
    print(
        json.dumps(
            {"audio_s": audio_s, "wall_s": taken.wall_s, "cpu_s": taken.cpu_s, "others_s": taken.others_s}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
