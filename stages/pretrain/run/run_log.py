"""Writes down what a run does: metrics.jsonl, lines on the terminal, boards, the picture of the curves."""

import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from stages.pretrain.config import Config
from stages.pretrain.data.index import Pinned
from stages.pretrain.model.mert import Mert
from stages.pretrain.run import display, metrics
from stages.pretrain.run.engine import Updated
from stages.pretrain.run.run_dir import RunDir
from stages.pretrain.run.world import World
from stages.signal.rates import RATE_HZ


class RunLog:
    """Every rank has one; rank 0's writes. `say` takes a line for people."""

    def __init__(self, config: Config, world: World, run_dir: RunDir, say: Callable[[str], None]):
        self.config, self.world, self.run_dir = config, world, run_dir
        self._say, self._boards, self._took_s = say, None, 0.0

    def say(self, text: str) -> None:
        """A line for people, also in RUN/run.log."""
        if self.world.is_rank_0:
            with open(self.run_dir.path / "run.log", "a") as file:
                file.write(text + "\n")
            self._say(text)

    def start(
        self, model: Mert, pinned: Pinned, update: int, micro_batches: int, peak: float, restored: str | None
    ) -> None:
        """The first words of a run, and its `start` line."""
        self.peak, self.flops = peak, model.flops(self.config.data.samples)
        sizes = model.parts()
        self.say(
            f"model {sum(sizes.values()) / 1e6:.2f}M parameters: "
            + ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in sizes.items())
        )
        engine, world = self.config.engine, self.world
        self.say(
            f"{world.size} rank{'s' if world.size > 1 else ''} on {world.device.type}, {engine.precision}, "
            f"ZeRO {engine.zero_stage}, {torch.get_num_threads()} threads, {micro_batches} micro-batches of "
            f"{engine.micro_batch} crops of {self.config.data.samples / RATE_HZ:.2f} s an update; peak "
            f"{peak / 1e9:.0f} GFLOP/s measured"
        )
        self.say(
            f"resumed from {restored} in {self.run_dir.path}" if restored else f"begun in {self.run_dir.path}"
        )
        codebooks = [f"{column.name}/{k}" for column in pinned.codes for k in range(column.codebooks)]
        self.run_dir.log(
            "start",
            time=time.time(),
            update=update,
            world=world.size,
            host=socket.gethostname(),
            codebooks=codebooks,
            peak_flops=peak,
            updates=self.config.optim.updates,
        )
        if world.is_rank_0:
            self._boards = display.Boards(
                self.run_dir.path, self.config.watch, self.config.run.name, asdict(self.config), update
            )

    def update(
        self,
        update: int,
        epoch: int,
        done: Updated,
        frames: int,
        rate: float,
        took_s: float,
        waited_s: float,
        counters: dict[str, int],
    ) -> None:
        """One update's line over `frames` masked frames; `counters`: skipped, replaced, micro_batches of all
        ranks."""
        self._took_s = took_s if not self._took_s else 0.95 * self._took_s + 0.05 * took_s
        crops, optim = self.config.optim.global_batch, self.config.optim
        row = metrics.row(done.sums, frames) | {
            "update": update,
            "epoch": epoch,
            "time": time.time(),
            "penalty": float(done.sums["penalty"]) / counters["micro_batches"],
            "grad_norm": done.grad_norm,
            "lr": rate,
            "scale": done.scale,
            "audio_s_per_s": crops * self.config.data.samples / RATE_HZ / took_s,
            "utilisation": self.flops * crops / took_s / (self.peak * self.world.size),
            "data_wait": waited_s / took_s,
            "skipped": counters["skipped"],
            "replaced": counters["replaced"],
            "left_s": self._took_s * (optim.updates - update),
        }
        self._write("update", row)

    def valid(self, update: int, found: dict[str, Any]) -> None:
        self._write("valid", found | {"update": update, "time": time.time()})
        self.draw()

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self.run_dir.log(kind, **row)
        if self.world.is_rank_0:
            self.say(display.line({"kind": kind, **row}, self.config.optim.updates))
            self._boards.add({"kind": kind, **row})

    def replaced(self, update: int, own: list[str]) -> int:
        """Say which samples of all ranks failed and were replaced; `own`: this rank's. Returns how many."""
        samples = [text for found in self.world.gather(own) for text in found]
        self.say(f"update {update}: replaced {len(samples)} that failed: {'; '.join(samples)}")
        self.log("replaced", update=update, samples=samples)
        return len(samples)

    def skipped(self, update: int, loss: float, own: list[str]) -> None:
        """Say that an update was skipped, and which samples of all ranks are not finite; `own`: this rank's
        keys."""
        keys = [key for found in self.world.gather(own) for key in found]
        self.say(
            f"update {update} skipped (loss {loss:.4g}); samples that are not finite: "
            f"{', '.join(keys) or 'none'}"
        )
        self.log("skipped", update=update, loss=loss, keys=keys)

    def log(self, kind: str, **values: Any) -> None:
        self.run_dir.log(kind, time=time.time(), **values)

    def draw(self) -> None:
        """RUN/curves.png as of now."""
        if self.world.is_rank_0:
            self._boards.flush()
            display.draw_curves(self.run_dir.path / "metrics.jsonl", self.run_dir.path / "curves.png")
