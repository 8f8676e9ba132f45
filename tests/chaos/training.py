"""Small training runs to be killed: a corpus made in milliseconds, a model of seconds, one process a rank."""

import json
import subprocess
import sys
import time
from pathlib import Path

from stages.pretrain.run.world import free_port
from tests.conftest import ROOT
from tests.ranks import environment
from tests.stages.pretrain.corpus import Corpus

CONFIG = """
run: {{name: toy, dir: {folder}, threads: 1}}
data: {{corpora: [{folder}/corpus], crop_samples: 16000, workers: {workers},
  valid_crops: 8, cache: {folder}/cache}}
model: {{conv: {{channels: [16, 16, 16, 16, 16, 16, 16]}}, 
  layers: 2, width: 32, ffn: 64, heads: 4, position_kernel: 16,
        position_groups: 4, layer_drop: 0.2}}
objective: {{head_width: 8, cqt_start: fit}}
optim: {{updates: {updates}, warmup_updates: 2, global_batch: 8, lr: 1.0e-3, cqt_head_lr_scale: 0.3}}
engine: {{micro_batch: 2, precision: {precision}, zero_stage: {stage}}}
checkpoints: {{every_updates: 2, keep: 2}}
watch: {{validate_every: 6, baseline_crops: 16, tensorboard: false}}
"""


def configured(
    folder: Path, updates: int = 12, precision: str = "fp32", stage: int = 1, workers: int = 0, more: str = ""
) -> Path:
    """A configuration of a run in `folder`, over a corpus that is the same in every folder."""
    if not (folder / "corpus").exists():
        Corpus(str(folder / "corpus")).write(shards=4, recordings=3, segments=4, valid=2).gather()
    path = folder / "toy.yaml"
    path.write_text(
        CONFIG.format(folder=folder, updates=updates, precision=precision, stage=stage, workers=workers)
        + more
    )
    return path


class Ranks:
    """The ranks of one run, started as a launcher starts them."""

    def __init__(self, config: Path, size: int = 1, *overrides: str):
        port = free_port()
        argv = [
            sys.executable,
            "-m",
            "stages.pretrain",
            str(config),
            *(a for o in overrides for a in ("--set", o)),
        ]
        self.output = config.parent / "output.txt"
        with open(self.output, "w") as out:
            self.processes = [
                subprocess.Popen(argv, cwd=ROOT, env=environment(r, size, port), stdout=out, stderr=out)
                for r in range(size)
            ]

    def wait(self, timeout_s: float = 240) -> int:
        """The exit code of rank 0 when all have ended."""
        for process in self.processes:
            process.wait(timeout_s)
        return self.processes[0].returncode

    def kill(self, rank: int) -> bool:
        """SIGKILL one rank, then, as launchers do, the others; False when that rank had ended by itself."""
        alive = self.processes[rank].poll() is None
        self.processes[rank].kill()
        time.sleep(0.1)
        for process in self.processes:
            process.kill()
            process.wait()
        return alive

    def text(self) -> str:
        return self.output.read_text()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def rows(folder: Path, kind: str = "update") -> list[dict]:
    """Lines of RUN/metrics.jsonl, also while it is written."""
    path = folder / "toy" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in found if row["kind"] == kind]


CURVE = ("update", "epoch", "samples", "loss", "ce", "accuracy", "cqt_error", "grad_norm", "lr")


def curve(folder: Path) -> list[dict]:
    """What must repeat of a run: each update once, in order, with its samples and its numbers."""
    return [{name: row[name] for name in CURVE} for row in rows(folder)]


def reach(ranks: Ranks, folder: Path, update: int, timeout_s: float = 120, starts: int = 1) -> None:
    """Wait until the run has begun `starts` times and that update is written down, or the ranks have
    ended."""
    deadline = time.monotonic() + timeout_s

    def reached() -> bool:
        return len(rows(folder, "start")) >= starts and any(row["update"] >= update for row in rows(folder))

    while ranks.processes[0].poll() is None and not reached():
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.02)


def weights(folder: Path) -> bytes:
    """The last checkpoint's weights."""
    place = folder / "toy" / "checkpoints"
    return (place / (place / "latest").read_text().strip() / "model.safetensors").read_bytes()
