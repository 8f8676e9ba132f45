"""`make bench-teachers`: each teacher against what people run today, on the same cores, in one run.

    python -m tests.bench.bench_teachers [--teacher encodec cqt-30 …] [--rounds 2] [--seconds 60] [--threads
    1]

Reference and ours alternate, each in a process of its own; the faster round of each counts. The share
of the peak is our arithmetic against a plain float32 matrix product on the same threads or GPU.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tests.bench.measure import CORES, machine, run

CQT_SECONDS = {"cqt-30": 30.0, "cqt-300": 300.0}
NAMES = ("encodec", "encodec-bf16", "encodec-fp16", "cqt-30", "cqt-300", "mel_rvq", "best_rq", "kmeans")
FRAMES_PER_S = 75


def gflop_per_s(name: str) -> float:
    """Arithmetic of ours in a second of audio, GFLOP: products of matrices, and 5 N log2 N for a complex FFT
    of N."""
    if name.startswith("encodec"):
        from stages.label.teachers.encodec_model import LEVELS
        from stages.label.teachers.encodec_weights import layers

        rate, total = {"first": 24_000.0, "last": 75.0}, 0.0
        for n, (_, stride) in enumerate(LEVELS):
            at = 24_000 / math.prod(s for _, s in LEVELS[:n])
            rate |= {f"level{n}.{part}": at for part in ("inner", "outer", "shortcut")} | {
                f"level{n}.down": at / stride
            }
        for layer, (_, shape) in layers().items():
            total += 2 * math.prod(shape) * rate[layer]
        return (total + FRAMES_PER_S * (2 * 2 * 2 * 512 * 2048 + 8 * 2 * 1024 * 128)) / 1e9
    if name.startswith("cqt"):
        from stages.signal.cqt import ConstantQ, CqtSpec
        from stages.signal.tables import table_cache

        spec = CqtSpec()
        block = 4 * sum(t.weights.numel() for t in ConstantQ(spec, table_cache()).tables)
        block += fft(spec.block_frames * spec.hop_samples) / 2 + spec.bins * fft(spec.block_frames)
        return block * FRAMES_PER_S / spec.payload_frames / 1e9
    mel, chroma = fft(2048) / 2 + 2 * 1025 * 128, fft(4096) / 2 + 2 * 2049 * 140
    frame = {
        "mel_rvq": mel + 8 * 2 * (128 * 16 + 16 * 1024),
        "best_rq": mel + 2 * (512 * 16 + 16 * 8192),
        "kmeans": chroma + 2 * 140 * 1024,
    }
    return FRAMES_PER_S * frame[name] / 1e9


def fft(points: int) -> float:
    return 5 * points * math.log2(points)


def peak_gflops(device: str, threads: int) -> float:
    """Best of five products of two float32 matrices of 4,096 (2,048 on a CPU)."""
    torch.set_num_threads(threads)
    size, best = 2048 if device == "cpu" else 4096, 0.0
    a, b = torch.randn(2, size, size, device=device)
    for _ in range(6):
        begun = time.perf_counter()
        (a @ b)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - begun) / 1e9)
    return best


def agreement(name: str, ours: np.ndarray, reference: np.ndarray) -> str:
    if name.startswith("cqt"):
        worst = (np.abs(ours - reference) / (reference.max(0) + 5e-3)).max()
        return f"{worst:.1e} of a bin's maximum at most"
    share = (ours == reference[: len(ours)]).mean(0)
    levels = (
        f" (first level {share[0]:.2%}, last {share[-1]:.2%})"
        if len(share) > 1 and share.min() < 0.9999
        else ""
    )
    return f"{share.mean():.4%} of tokens{levels}"


def measured(name: str, device: str, folder: Path, asked: argparse.Namespace) -> list[str]:
    """One row: speeds, ratio, agreement, memory, share of the peak."""
    seconds = CQT_SECONDS.get(name, asked.seconds)
    best: dict[str, dict] = {}
    for _ in range(asked.rounds):
        for who in ("reference", "ours"):
            found = json.loads(
                run(
                    "tests.bench.part_teachers",
                    name,
                    who,
                    device,
                    "--folder",
                    folder,
                    "--seconds",
                    seconds,
                    "--threads",
                    asked.threads,
                    "--rounds",
                    1 if device == "cpu" else 5,
                ).splitlines()[-1]
            )
            if who not in best or found["wall_s"] < best[who]["wall_s"]:
                best[who] = found
    speed = {who: found["audio_s"] / found["wall_s"] for who, found in best.items()}
    ours, reference = (np.load(folder / f"{name}-{who}.npy") for who in ("ours", "reference"))
    share = speed["ours"] * gflop_per_s(name) / peak_gflops(device, asked.threads)
    memory = " → ".join(f"{best[who]['peak_gib']:.2f}" for who in ("reference", "ours"))
    return [
        name,
        device,
        f"{speed['reference']:.1f}",
        f"{speed['ours']:.1f}",
        f"{speed['ours'] / speed['reference']:.2f}",
        agreement(name, ours, reference),
        memory,
        f"{share:.0%} of {peak_gflops(device, asked.threads):.0f} GFLOP/s",
    ]


def main(argv: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(
        prog="python -m tests.bench.bench_teachers", description=__doc__.split("\n")[0]
    )
    top.add_argument("--teacher", nargs="+", choices=NAMES, default=list(NAMES))
    top.add_argument("--rounds", type=int, default=2)
    top.add_argument(
        "--seconds", type=float, default=60.0, help="of each of two files; the constant-Q rows say their own"
    )
    top.add_argument("--threads", type=int, default=CORES, help="of reference and of ours")
    top.add_argument("--notes", action="store_true", help="only the notes below the table")
    asked = top.parse_args(argv)
    table = Table(title=f"{machine()}; {asked.threads} threads", title_justify="left", show_lines=True)
    for title in (
        "teacher",
        "device",
        "reference, × real time",
        "ours",
        "ratio",
        "agreement",
        "peak memory, GiB",
        "arithmetic, share of peak",
    ):
        table.add_column(title, overflow="fold")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory(prefix="overtone-bench-teachers-") as folder:
        for name in [] if asked.notes else asked.teacher:
            for device in devices:
                try:
                    table.add_row(*measured(name, device, Path(folder), asked))
                except (ValueError, RuntimeError, OSError) as error:
                    table.add_row(name, device, "not measured", "", "", str(error)[-300:], "", "")
                print(f"{name} on {device}: done", file=sys.stderr, flush=True)
    console = Console(width=None if sys.stdout.isatty() else 220)
    if not asked.notes:
        console.print(table)
    from tests.bench.teacher_notes import notes

    for line in notes(asked.threads):
        console.print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
