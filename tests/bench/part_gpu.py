"""Parts of `bench_gpu` that are no benchmark of their own, each in a process: prints one JSON object.

python -m tests.bench.part_gpu peaks cuda
python -m tests.bench.part_gpu trainer cuda FOLDER SIZE UPDATES     # labels its shards itself, without Ray
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.excerpt import MUSIC

ROOT = Path(__file__).resolve().parents[2]
LABELS = """
recipe:
  plan: {{shard_minutes: 1, validation_share: 0.1}}
  codes: {{teacher: best_rq, codebook_size: 1024}}
  cqt: {{}}
run: {{audio: {audio}, out: {out}}}
"""
# recipe, micro-batch and seconds of a crop by size: of a card of 80 GiB and more
TRAINER = {"95m": ("mert_95m", 96, 5.0), "330m": ("mert_330m", 48, 5.12), "tiny": ("tiny", 4, 1.0)}


def peaks(device: str, side: int = 8192, rounds: int = 20) -> dict[str, float]:
    """FLOP/s of square matrix products, best of three."""
    if device == "cpu":
        side, rounds = 512, 2
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
    found = {}
    for name, dtype in kinds.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        found[name] = 0.0
        for _ in range(4):  # the first one warms up
            wait(device)
            begun = time.perf_counter()
            for _ in range(rounds):
                a @ b
            wait(device)
            found[name] = max(found[name], rounds * 2 * side**3 / (time.perf_counter() - begun))
    return found


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def trainer(device: str, folder: Path, size: str, updates: int) -> dict[str, float]:
    """The trainer as people run it, on one rank: its median speed over the second half of so many updates
    without a checkpoint, what a checkpoint costs, and the seconds until it goes on after a SIGKILL."""
    out, name = folder / "labels", f"run-{size}"
    if not (out / "segments.parquet").exists():
        config = folder / "labels.yaml"
        config.write_text(LABELS.format(audio=json.dumps(str(MUSIC)), out=json.dumps(str(out))))
        run("pipeline", "labels", config, "--plain")
    recipe, micro_batch, crop_s = TRAINER[size]
    settings = {
        "data.corpora": f"[{out}]",
        **({"data.crop_s": crop_s} if size == "tiny" else {}),  # the others have it in their recipes
        "run.dir": folder,
        "run.name": name,
        "engine.micro_batch": micro_batch,
        "engine.compile": device != "cpu",
        "engine.precision": "bf16" if device != "cpu" else "fp32",
        "optim.global_batch": micro_batch,
        "optim.updates": 10 * updates,
        "checkpoints.every_updates": updates // 2,
        "watch.validate_every": 100 * updates,
    }
    command = [sys.executable, "-m", "stages.pretrain", f"configs/pretrain/{recipe}.yaml"]
    for key, value in settings.items():
        command += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    rows = until(command, folder / name, updates)
    speeds = {row["update"]: row["audio_s_per_s"] for row in rows if row["kind"] == "update"}
    saved = {row["update"] for row in rows if row["kind"] == "checkpoint"}
    late = [
        speed for n, speed in speeds.items() if n > updates // 2 and n not in saved and n - 1 not in saved
    ]
    audio_s = micro_batch * crop_s
    seconds = audio_s / statistics.median(late)
    stall = max((audio_s / speeds[n + 1] - seconds for n in saved if n + 1 in speeds), default=0.0)
    begun = time.time()
    again = until(command, folder / name, max(speeds) + 1)
    first = next(r["time"] for r in again if r["kind"] == "update" and r["time"] > begun)
    shares = [row["utilisation"] for row in rows if row["kind"] == "update" and row["update"] > updates // 2]
    return {
        "audio_s_per_s": statistics.median(late),
        "utilisation": statistics.median(shares),
        "data_wait": statistics.median(r["data_wait"] for r in rows if r["kind"] == "update"),
        "checkpoint_stall_s": stall,
        "goes_on_after_s": first - begun,
    }


def until(command: list[str], folder: Path, updates: int) -> list[dict]:
    """Rows of a run that is killed by SIGKILL after so many updates."""
    metrics = folder / "metrics.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while True:
        rows = []
        for line in metrics.read_text().splitlines() if metrics.exists() else ():
            if line.endswith("}"):
                rows.append(json.loads(line))
        done = max((row["update"] for row in rows if row["kind"] == "update"), default=0)
        if done >= updates:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return rows
        if process.poll() is not None:
            raise RuntimeError(process.stderr.read().decode()[-2000:])
        time.sleep(0.05)


def run(module: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{module}: {(done.stderr or done.stdout)[-2000:]}")


if __name__ == "__main__":
    what, device, *more = sys.argv[1:]
    os.environ.pop("RAY_ADDRESS", None)
    json.dump(
        peaks(device) if what == "peaks" else trainer(device, Path(more[0]), more[1], int(more[2])),
        sys.stdout,
    )
