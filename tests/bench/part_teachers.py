"""One teacher, one side, one device, in a process of its own, so that its peak memory is its own.

    python -m tests.bench.part_teachers encodec ours cpu --folder F    → one JSON line, and F/encodec-ours.npy

`bench_teachers` runs it. `reference` is what people run today (`teacher_references`), `ours` the package.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.bench import teacher_references as references
from tests.encodec_weights import cached_weights
from tests.excerpt import RATE_HZ, ArrayWave, excerpt

WARM_UP_S = 5


def files(name: str, seconds: float) -> list[np.ndarray]:
    """Two files of music; for the constant-Q teachers one of `seconds`, looped where music ends."""
    if not name.startswith("cqt"):
        return [excerpt(n, 10.0, seconds).copy() for n in (1, 2)]
    loop = np.concatenate([excerpt(n, 10.0, 60.0) for n in (1, 2, 3)])
    return [np.tile(loop, int(np.ceil(seconds * RATE_HZ / len(loop))))[: int(seconds * RATE_HZ)]]


def fitted(folder: Path) -> dict[str, bytes]:
    """Weights of the teachers that are fitted, at their default sizes, made once in `folder`."""
    from stages.label.teachers.kmeans import KMeans
    from stages.label.teachers.mel_rvq import MelRvq

    found = {}
    for teacher in (MelRvq(steps=20), KMeans(steps=20)):
        path = folder / f"{teacher.name}.safetensors"
        if not path.exists():
            waves = [ArrayWave(excerpt(n, 5.0, 60.0)) for n in range(4)]
            path.write_bytes(teacher.fit(waves, "cpu", torch.get_num_threads(), lambda event: None)[0])
        found[teacher.name] = path.read_bytes()
    return found


def body(name: str, who: str, device: str, folder: Path, threads: int) -> references.Body:
    from safetensors.numpy import load

    from stages.label.teachers.best_rq import BestRq
    from stages.label.teachers.encodec import Encodec
    from stages.label.teachers.kmeans import KMeans
    from stages.label.teachers.mel_rvq import MelRvq

    if name.startswith("cqt"):
        return references.cqt(device) if who == "reference" else our_cqt(device)
    teacher, _, dtype = name.partition("-")
    made: dict[str, Callable] = {
        "encodec": lambda: Encodec(dtype=dtype or "fp32"),
        "mel_rvq": MelRvq,
        "best_rq": BestRq,
        "kmeans": KMeans,
    }
    recipe = made[teacher]()
    weights = {"encodec": lambda: recipe.locate(str(cached_weights())), "best_rq": lambda: None}.get(
        teacher, lambda: fitted(folder)[teacher]
    )()
    if who == "ours":
        label = recipe.open(weights, device, threads)
        return lambda wave_N: np.concatenate(list(label(ArrayWave(wave_N))))
    return {
        "encodec": lambda: references.encodec(cached_weights(), device),
        "mel_rvq": lambda: references.mel_rvq(recipe, load(weights), device),
        "best_rq": lambda: references.random_projection(recipe, device),
        "kmeans": lambda: references.kmeans(recipe, load(weights), device),
    }[teacher]()


def our_cqt(device: str) -> references.Body:
    from stages.signal.cqt import ConstantQ, CqtSpec
    from stages.signal.tables import table_cache

    transform = ConstantQ(CqtSpec(), table_cache(), device)
    return lambda wave_N: (
        transform.frames(torch.from_numpy(wave_N)[None].to(device), 0, len(wave_N) // 320)[0].cpu().numpy()
    )


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("name")
    asked.add_argument("who", choices=("reference", "ours"))
    asked.add_argument("device")
    asked.add_argument("--folder", type=Path, required=True)
    asked.add_argument("--seconds", type=float, default=60.0)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--rounds", type=int, default=2)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    run = body(given.name, given.who, given.device, given.folder, given.threads)
    sounds = files(given.name, given.seconds)
    with torch.inference_mode():
        run(sounds[0][: WARM_UP_S * RATE_HZ])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        walls = []
        for _ in range(given.rounds):
            begun = time.perf_counter()
            frames = [run(sound) for sound in sounds]
            walls.append(time.perf_counter() - begun)
    np.save(given.folder / f"{given.name}-{given.who}.npy", np.concatenate(frames))
    on_gpu = given.device.startswith("cuda")
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    audio_s = sum(map(len, sounds)) / RATE_HZ
    json.dump(
        {"audio_s": audio_s, "wall_s": min(walls), "peak_gib": peak / 2**30, "warm_gib": before / 2**20},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
