"""What a run costs beside its stages: a fixed part, by a run with next to nothing to do, and a part that
grows with the work, by the slope between runs of several sizes."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.bench.measure import CORES, ROOT, Row, machine_cpu_s, run, tree_cpu_by_process
from tests.bench.part_whole import ENCODEC, corpus, last_json, write_config

FIXED_CPU_S, FIXED_WALL_S, SLOPE = 40.0, 20.0, 1.05


def whole(config: Path) -> tuple[float, float, float]:
    """CPU seconds of a `labels` command with all its processes, its wall seconds, and what others took.

    Each process's own, looked at five times a second: of Ray's, nobody waits for some and somebody for
    others. What lives shorter is counted as someone else's."""
    begun, all_of_it, seen = time.perf_counter(), machine_cpu_s(), {}
    command = [sys.executable, "-m", "pipeline", "labels", config]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        seen.update(tree_cpu_by_process(process.pid, waited=False))
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"{config}: labels ended with {process.returncode}")
    cpu_s, wall_s = sum(seen.values()), time.perf_counter() - begun
    return cpu_s, wall_s, machine_cpu_s() - all_of_it - cpu_s


def nothing(folder: Path, weights: Path) -> list[Row]:
    """A run over one recording of some seconds, twice: the second has the files of the first in memory."""
    audio = folder / "little"
    audio.mkdir()
    shortest = min((ROOT / "examples" / "quickstart").glob("*.ogg"), key=lambda path: path.stat().st_size)
    (audio / shortest.name).symlink_to(shortest)
    cost = [
        whole(write_config(folder / f"little{n}.yaml", audio, folder / f"little{n}", ENCODEC, 5, weights))
        for n in range(2)
    ]
    cpu_s, wall_s, others_s = cost[-1]
    return [
        Row(
            "a run's fixed cost: one recording of some seconds, EnCodec",
            f"{cpu_s:.1f} CPU-s, {wall_s:.1f} s wall (others took {others_s / wall_s:.2f} cores)",
            f"≤ {FIXED_CPU_S:g} CPU-s, ≤ {FIXED_WALL_S:g} s",
            cpu_s <= FIXED_CPU_S and wall_s <= FIXED_WALL_S,
        )
    ]


def measure(music: Path, folder: Path, sizes_h: list[float], shard_minutes: float) -> list[Row]:
    from tests.encodec_weights import cached_weights

    weights, found = cached_weights(), []
    rows = nothing(folder, weights)
    for hours in sizes_h:
        audio = folder / f"music{hours:g}"
        seconds = corpus(music.resolve(), audio, hours * 3600)

        def configured(name: str, audio: Path = audio) -> Path:
            return write_config(
                folder / f"{name}.yaml", audio, folder / name, ENCODEC, shard_minutes, weights
            )

        cpu_s, wall_s, others_s = whole(configured(f"whole{hours:g}"))
        alone = configured(f"alone{hours:g}")
        alone_s = sum(last_json(run("tests.bench.part_whole", "alone", alone, 0, 1)).values())
        found.append((seconds / 3600, cpu_s, wall_s, alone_s, others_s))
    hours, cpu_s, wall_s, alone_s, _ = map(np.array, zip(*found, strict=True))
    slope, fixed = np.polyfit(alone_s, cpu_s, 1)
    across = np.polyfit(alone_s, wall_s * CORES, 1)[0]
    each = "; ".join(
        f"{h:.2f} h: {c:.0f} CPU-s, {w:.0f} s wall, alone {a:.0f}, others {o / w:.2f} cores"
        for h, c, w, a, o in found
    )
    return rows + [
        Row(
            "CPU seconds of a whole run for each of its stages alone, by the slope over these sizes",
            f"{slope:.3f}, from {fixed:.1f} CPU-s on; wall × cores {across:.3f} ({each})",
            f"≤ {SLOPE:g}",
            bool(slope <= SLOPE),
        )
    ]
