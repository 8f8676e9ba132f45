"""`make bench-gpu`: what one card does with the project, in eight minutes, without network and without Ray.

    python -m tests.bench.bench_gpu [--csv docs/speed.csv] [--only peaks step …] [--small]

Each part runs in a process of its own, with a time limit: one that fails costs its own rows. The rows go to a
table, and are added to a CSV of all that was measured, with the date, the commit and the card.
"""

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ("date", "commit", "card", "torch", "what", "value", "unit", "share_of_peak")
WHOLE_S = 480.0
TEACHERS = ("encodec", "cqt-30", "cqt-300", "mel_rvq", "best_rq", "kmeans")
SONG_S = 240.0


class Figure(NamedTuple):
    what: str
    value: float
    unit: str
    share: float | None = None  # of the card's bf16 matrix peak


class Part(NamedTuple):
    """`read` makes figures of the JSON that the module prints, and of the peak in FLOP/s."""

    name: str
    limit_s: float
    module: str
    arguments: tuple
    read: Callable[[dict, float], list[Figure]]


def teacher(name: str, who: str, folder: Path, device: str, seconds: float) -> Part:
    seconds = float(name.partition("-")[2]) if name.startswith("cqt") else seconds
    options = ("--folder", folder, "--seconds", seconds, "--threads", 4, "--rounds", 3)

    def read(found: dict, peak: float) -> list[Figure]:
        what = f"{name}, {who}, files of {seconds:g} s"
        figures = [Figure(what, found["audio_s"] / found["wall_s"], "× real time")]
        pair = [folder / f"{name}-{side}.npy" for side in ("ours", "reference")]
        if who == "ours" and pair[1].exists() and not name.startswith("cqt"):
            ours, reference = map(np.load, pair)
            if len(reference) >= len(ours):
                same = (ours == reference[: len(ours)]).mean()
                figures.append(Figure(f"{name}, tokens as the reference's", 100 * same, "%"))
        return figures

    return Part(f"teacher {name} {who}", 60, "tests.bench.part_teachers", (name, who, device, *options), read)


def step(size: str, clips: int, device: str, compiled: bool) -> Part:
    counts = ("--steps", 20, "--warm", 6) if device == "cuda" else ("--steps", 2)
    options = ("ours", "--size", size, "--clips", clips, "--device", device, *counts)
    what = f"step {size}, {clips} clips, {'compiled' if compiled else 'eager'}"

    def read(found: dict, peak: float) -> list[Figure]:
        speed = Figure(what, found["audio_s_per_s"], "audio-s/s", found["flops_per_s"] / peak)
        return [speed, Figure(f"{what}, peak memory", found["peak_gib"], "GiB")]

    return Part(what, 90, "tests.bench.part_model", (*options, *(["--compile"] if compiled else [])), read)


def trainer(size: str, folder: Path, device: str, updates: int) -> Part:
    def read(found: dict, peak: float) -> list[Figure]:
        what = f"trainer {size}"
        return [
            Figure(what, found["audio_s_per_s"], "audio-s/s", found["utilisation"]),
            Figure(f"{what}, waits for data", 100 * found["data_wait"], "%"),
            Figure(f"{what}, a checkpoint holds it up", found["checkpoint_stall_s"], "s"),
            Figure(f"{what}, goes on after SIGKILL", found["goes_on_after_s"], "s"),
        ]

    arguments = ("trainer", device, folder, size, updates)
    return Part(f"trainer {size}", 180, "tests.bench.part_gpu", arguments, read)


def parts(folder: Path, device: str, small: bool) -> Iterator[Part]:
    """The most telling first: what comes last may find no time left."""
    kinds = ("bf16", "fp16", "fp32", "tf32")

    def peaks(found: dict, peak: float) -> list[Figure]:
        return [Figure(f"matrix peak, {kind}", found[kind] / 1e12, "TFLOP/s") for kind in kinds]

    yield Part("peaks", 60, "tests.bench.part_gpu", ("peaks", device), peaks)
    sizes = {"tiny": 2} if small else {"95m": 96, "330m": 64}
    for size, clips in sizes.items():
        for compiled in (False,) if small else (False, True):
            yield step(size, clips, device, compiled)
    for name in ("best_rq",) if small else TEACHERS:
        for who in ("reference", "ours"):
            yield teacher(name, who, folder, device, 5.0 if small else 60.0)
    for size in sizes:
        yield trainer(size, folder, device, 6 if small else 40)
    for name in () if small else ("encodec", "mel_rvq", "best_rq", "kmeans"):
        yield teacher(name, "ours", folder, device, SONG_S)


def measured(asked: argparse.Namespace, folder: Path) -> Iterator[Figure | str]:
    """Figures, and a sentence for each part that has none."""
    begun, peak = time.monotonic(), float("nan")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for part in parts(folder, device, asked.small):
        if asked.only and part.name.split()[0] not in asked.only:
            continue
        left = WHOLE_S - (time.monotonic() - begun)
        if left < 10:
            yield f"{part.name}: no time left"
            continue
        command = [sys.executable, "-m", part.module, *map(str, part.arguments)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=min(left, part.limit_s)
            )
            if done.returncode:
                yield f"{part.name}: {done.stderr.strip()[-300:]}"
                continue
            found = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired as late:
            yield f"{part.name}: not done after {late.timeout:.0f} s"
            continue
        peak = found.get("bf16", peak)
        yield from part.read(found, peak)


def add(path: Path, figures: list[Figure]) -> None:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no card ({platform.machine()})"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(FIELDS)
        for figure in figures:
            share = "" if figure.share is None else f"{figure.share:.3f}"
            own = (time.strftime("%Y-%m-%d"), commit or "unknown", card, torch.__version__)
            writer.writerow([*own, figure.what, f"{figure.value:.4g}", figure.unit, share])


def main(argv: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m tests.bench.bench_gpu", description=__doc__.split("\n")[0])
    top.add_argument("--csv", type=Path, default=ROOT / "docs" / "speed.csv", help="where rows are added")
    top.add_argument("--only", nargs="+", choices=("peaks", "step", "teacher", "trainer"))
    top.add_argument("--small", action="store_true", help="sizes that only show that it runs, on a CPU too")
    asked = top.parse_args(argv)
    if not torch.cuda.is_available() and not asked.small:
        sys.exit("bench-gpu: torch sees no card here; --small shows on a CPU that it runs")
    table, figures, missing = Table("what", "value", "unit", "of the peak"), [], 0
    with tempfile.TemporaryDirectory(prefix="overtone-bench-gpu-") as folder:
        for found in measured(asked, Path(folder)):
            print(
                found if isinstance(found, str) else f"{found.what}: {found.value:.4g} {found.unit}",
                flush=True,
            )
            if isinstance(found, str):
                missing += 1
                table.add_row(found, "", "", "")
                continue
            figures.append(found)
            share = "" if found.share is None else f"{found.share:.1%}"
            table.add_row(found.what, f"{found.value:,.4g}", found.unit, share)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if figures:
        add(asked.csv, figures)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
