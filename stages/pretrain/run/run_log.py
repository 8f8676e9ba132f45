"""What a run writes down, for people and in metrics.jsonl."""

import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from stages.pretrain.config import Config
from stages.pretrain.data.index import Pinned
from stages.pretrain.data.state import State
from stages.pretrain.model.mert import Mert
from stages.pretrain.run import display, metrics
from stages.pretrain.run.run_dir import RunDir
from stages.pretrain.run.world import World
from stages.signal.rates import RATE_HZ


class RunLog:
    def __init__(self, config: Config, world: World, run_dir: RunDir, say: Callable[[str], None]):
        self.config, self.world, self.run_dir = config, world, run_dir
        self._say, self._boards, self._mean_s = say, None, 0.0

    def say(self, text: str) -> None:
        """Also in RUN/run.log."""
        if self.world.is_rank_0:
            with open(self.run_dir.path / "run.log", "a") as file:
                file.write(text + "\n")
            self._say(text)

    def start(
        self, model: Mert, pinned: Pinned, update: int, micro_batches: int, peak: float, restored: str | None
    ) -> None:
        """The first lines, and the `start` row. `micro_batches` and `peak` FLOP/s of one rank."""
        config, world, path = self.config, self.world, self.run_dir.path
        engine, size, samples = config.engine, world.size, config.data.samples
        self._peak, self._micro_batches = peak * size, micro_batches * size
        self._crop_flops, self._crop_s = model.flops(samples), samples / RATE_HZ
        sizes = model.parts()
        parts = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in sizes.items())
        self.say(f"model {sum(sizes.values()) / 1e6:.2f}M parameters: {parts}")
        self.say(
            f"{size} rank{'s' if size > 1 else ''} on {world.device.type}, {engine.precision}, ZeRO "
            f"{engine.zero_stage}, {torch.get_num_threads()} threads, {micro_batches} micro-batches of "
            f"{engine.micro_batch} crops of {self._crop_s:.2f} s an update; peak {peak / 1e9:.0f} GFLOP/s "
            "measured"
        )
        self.say(f"resumed from {restored} in {path}" if restored else f"begun in {path}")
        codebooks = [f"{column.name}/{k}" for column in pinned.codes for k in range(column.codebooks)]
        facts = {"world": size, "host": socket.gethostname(), "codebooks": codebooks, "peak_flops": peak}
        self.log("start", update=update, **facts, updates=config.optim.updates)
        if world.is_rank_0:
            self._boards = display.Boards(path, config.watch, config.run.name, asdict(config), update)

    def update(
        self, update: int, sums: dict[str, Tensor], frames: int, took_s: float, waited_s: float, facts: dict
    ) -> None:
        """`sums` over `frames` masked frames."""
        self._mean_s = 0.95 * self._mean_s + 0.05 * took_s if self._mean_s else took_s
        optim = self.config.optim
        row = metrics.row(sums, frames) | {
            "update": update,
            "time": time.time(),
            "penalty": float(sums["penalty"]) / self._micro_batches,
            "audio_s_per_s": optim.global_batch * self._crop_s / took_s,
            "utilisation": self._crop_flops * optim.global_batch / took_s / self._peak,
            "data_wait": waited_s / took_s,
            "left_s": self._mean_s * (optim.updates - update),
        }
        self._write("update", row | facts)

    def valid(self, update: int, figures: dict[str, Any], kind: str = "valid") -> None:
        self._write(kind, figures | {"update": update, "time": time.time()})
        self.draw()

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self.run_dir.log(kind, **row)
        if self.world.is_rank_0:
            row = {"kind": kind, **row}
            self.say(display.line(row, self.config.optim.updates))
            self._boards.add(row)

    def replaced(self, update: int, own: list[str]) -> int:
        """Returns how many. `own`: of this rank."""
        samples = sum(self.world.gather(own), [])
        self.say(f"update {update}: replaced {len(samples)} that failed: {'; '.join(samples)}")
        self.log("replaced", update=update, samples=samples)
        return len(samples)

    def skipped(self, update: int, loss: float, own: list[str]) -> None:
        """`own`: samples of this rank that are not finite."""
        keys = sum(self.world.gather(own), [])
        names = ", ".join(keys) or "none"
        self.say(f"update {update} skipped (loss {loss:.4g}); samples that are not finite: {names}")
        self.log("skipped", update=update, loss=loss, keys=keys)

    def restored(self, name: str, state: State) -> None:
        place = f"sample {state.consumed} of epoch {state.epoch}"
        self.say(f"restored {name}; went past the data up to {place}")
        self.log("restored", update=state.update, path=name, skipped=list(state.skipped))

    def log(self, kind: str, **values: Any) -> None:
        self.run_dir.log(kind, time=time.time(), **values)

    def draw(self) -> None:
        if self.world.is_rank_0:
            self._boards.flush()
            display.draw_curves(self.run_dir.path / "metrics.jsonl", self.run_dir.path / "curves.png")
