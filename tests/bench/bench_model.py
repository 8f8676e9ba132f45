"""`make bench-model`: a training step of the 95M model against transformers.HubertModel with the direct loss,
here and now.

    python -m tests.bench.bench_model [--rounds N] [--clips N] [--size 95m|330m|tiny] [--no-gpu]

Each side runs in processes of its own, turn by turn; its best round counts, and memory is the process's own
peak. With a GPU a second table sets the model's FLOPs against the card's measured bf16 matrix peak.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from tests.bench.measure import Row, machine, run

FASTER, LEANER = 1.5, 0.7
OF_PEAK = {"95m": 0.40, "330m": 0.45}


def one(*arguments: object) -> dict:
    return json.loads(run("tests.bench.part_model", *arguments).splitlines()[-1])


def against_reference(asked: argparse.Namespace) -> list[Row]:
    """The CPU's table: speed, and peak memory."""
    options = ("--size", asked.size, "--clips", asked.clips, "--steps", asked.steps)
    found: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for number in range(asked.rounds):
        for side in found:
            found[side].append(one(side, *options))
            print(f"round {number + 1}, {side}: {found[side][-1]}", file=sys.stderr, flush=True)
    speed = {side: max(r["audio_s_per_s"] for r in rows) for side, rows in found.items()}
    memory = {side: min(r["peak_gib"] for r in rows) for side, rows in found.items()}
    faster, share = speed["ours"] / speed["theirs"], memory["ours"] / memory["theirs"]
    what = f"{asked.size}, {asked.clips} clips, bf16 autocast, AdamW, CPU"
    speeds = f"{speed['ours']:.2f} against {speed['theirs']:.2f} audio-s/s: {faster:.2f}×"
    memories = f"{memory['ours']:.2f} against {memory['theirs']:.2f} GiB: {share:.2f}×"
    return [
        Row(f"training step, {what}", speeds, f"≥ {FASTER}×", faster >= FASTER),
        Row(f"peak memory, {what}", memories, f"≤ {LEANER}×", share <= LEANER),
    ]


def matrix_peak(side: int = 8192, rounds: int = 30) -> float:
    """bf16 FLOP/s of square products on the GPU, best of three."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first one warms up
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(rounds):
            a @ b
        torch.cuda.synchronize()
        best = max(best, rounds * 2 * side**3 / (time.perf_counter() - begun))
    return best


def on_gpu(asked: argparse.Namespace) -> list[Row]:
    """Model FLOPs against the card's own peak, compiled and not, and the reference."""
    peak = matrix_peak()
    rows = [
        Row(f"bf16 matrix peak of {torch.cuda.get_device_name()}", f"{peak / 1e12:.0f} TFLOP/s", "", True)
    ]
    torch.cuda.empty_cache()
    for size, wanted in OF_PEAK.items():
        options = ("--device", "cuda", "--size", size, "--clips", asked.gpu_clips, "--steps", 20, "--warm", 6)
        for compiled in ((), ("--compile",)):
            try:
                found = one("ours", *options, *compiled)
            except RuntimeError as error:
                rows.append(
                    Row(f"{size} {' '.join(compiled)}", f"not measured: {str(error)[-200:]}", "", None)
                )
                continue
            share = found["flops_per_s"] / peak
            text = f"{_speed(found)}; {found['flops_per_s'] / 1e12:.0f} TFLOP/s: {100 * share:.1f} %"
            what = f"{size}, {asked.gpu_clips} clips{', torch.compile' if compiled else ''}"
            rows.append(Row(what, text, f"≥ {100 * wanted:.0f} %", share >= wanted))
        theirs = one("theirs", *options[:5], min(8, asked.gpu_clips), *options[6:])
        rows.append(
            Row(f"{size}, HubertModel with the direct loss, at most 8 clips", _speed(theirs), "", True)
        )
    return rows


def _speed(found: dict) -> str:
    return f"{found['audio_s_per_s']:.0f} audio-s/s, {found['peak_gib']:.1f} GiB"


def main(argv: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(
        prog="python -m tests.bench.bench_model", description=__doc__.split("\n")[0]
    )
    top.add_argument("--size", choices=("95m", "330m", "tiny"), default="95m")
    top.add_argument("--clips", type=int, default=4)
    top.add_argument("--steps", type=int, default=3, help="after one to warm up; their median counts")
    top.add_argument("--rounds", type=int, default=2)
    top.add_argument("--gpu-clips", type=int, default=64)
    top.add_argument("--no-gpu", action="store_true")
    asked = top.parse_args(argv)
    rows = against_reference(asked)
    if torch.cuda.is_available() and not asked.no_gpu:
        rows += on_gpu(asked)
    table = Table(title=machine(), title_justify="left", show_lines=True)
    for title in ("promise", "measured", "target", ""):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(
            row.claim, row.measured, row.target, {True: "holds", False: "MISSED", None: "?"}[row.holds]
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 1 if any(row.holds is not True for row in rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"bench-model: {error}")
