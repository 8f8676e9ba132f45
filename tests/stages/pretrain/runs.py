"""Runs of the real trainer in the test's own process, without what takes its time: DeepSpeed, pictures,
measuring the processor.

What is left out changes no figure: at ZeRO stage 0 DeepSpeed adds gradients up and calls Adam, as `Plain`
does.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stages.pretrain import loop
from stages.pretrain.config import Config, load
from stages.pretrain.data.loader import Loader
from stages.pretrain.data.state import State
from stages.pretrain.run import display, engine
from stages.pretrain.run.engine import Engine
from stages.pretrain.run.world import World

ALONE = World(0, 1, 0, torch.device("cpu"))
STILL = ("model.input_dropout=0", "model.hidden_dropout=0", "model.attention_dropout=0")
SMALL = (
    "engine.zero_stage=0",
    "optim.global_batch=16",
    "engine.micro_batch=8",
    "optim.updates=6",
    "watch.validate_every=100",
    "checkpoints.every_updates=100",
    "model.layers=1",
    "objective.cqt_start=default",
    "watch.bootstrap=100",
)


class Plain:
    """DeepSpeed's stage 0 in plain PyTorch."""

    def __init__(self, module, adam, settings, optim, world, accumulation: int):
        assert settings.zero_stage == 0
        self.module, self.adam, self.accumulation, self.micro_steps, self.optimizer = (
            module,
            adam,
            accumulation,
            0,
            None,
        )

    def __call__(self, *arguments, **inputs):
        return self.module(*arguments, **inputs)

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def is_gradient_accumulation_boundary(self) -> bool:
        return (self.micro_steps + 1) % self.accumulation == 0

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self) -> None:
        if self.is_gradient_accumulation_boundary():
            self.adam.step()
            self.adam.zero_grad()
        self.micro_steps += 1


class Quick:
    """`train` in this process. `losses`: the n-th update tried → what its mean loss is said to be."""

    def __init__(self, patch: pytest.MonkeyPatch, configuration: Path, folder: Path):
        self.configuration, self.folder, self.patch = configuration, folder, patch
        self.said: list[str] = []
        self.losses: dict[int, float] = {}
        self.tried, self.pictures = 0, 0
        self.training: loop.Training | None = None
        self.calls: list[dict] = []  # of the engine, one for each update
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setattr(engine, "_initialize", Plain)
        patch.setattr(loop, "joined", lambda timeout_s: contextlib.nullcontext(ALONE))
        patch.setattr(loop, "matrix_peak", lambda device, dtype: 1e9)
        patch.setattr(display, "draw_curves", self._draw)
        self._watch_updates()

    def _draw(self, metrics: Path, picture: Path) -> None:
        assert metrics.exists()
        self.pictures += 1

    def _watch_updates(self) -> None:
        forward, backward, step, agree = Engine.forward, Engine.backward, Engine.step, World.agree

        def forwarded(own, batch, *draw):
            if not self.calls or "rate" in self.calls[-1]:  # the first micro-batch of an update
                self.tried += 1
                assert self.tried <= 60, "the run does not end"
                self.calls.append({"drawn": draw, "batches": []})
            self.calls[-1]["batches"].append(batch)
            return forward(own, batch, *draw)

        def backwarded(own, loss, frames):
            self.calls[-1]["frames"] = frames
            return backward(own, loss, frames)

        def stepped(own, lr, skip):
            self.calls[-1]["rate"] = lr
            return step(own, lr, skip)

        def agreed(world, values):
            self.calls[-1]["flags"] = (values["stop"], values["save"])
            found = agree(world, values)
            if self.tried in self.losses:
                found.there["loss"].fill_(self.losses[self.tried] * self.training.update_frames)
            return found

        self.patch.setattr(Engine, "forward", forwarded)
        self.patch.setattr(Engine, "backward", backwarded)
        self.patch.setattr(Engine, "step", stepped)
        self.patch.setattr(World, "agree", agreed)

    def config(self, *overrides: str) -> Config:
        return load(str(self.configuration), [f"run.dir={self.folder}", *SMALL, *overrides])

    def train(self, *overrides: str) -> str:
        own = self

        class Seen(loop.Training):
            def __init__(self, *arguments):
                own.training = self
                super().__init__(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "Training", Seen)
            try:
                return loop.train(self.config(*overrides), self.said.append)
            finally:
                if self.training is not None:
                    self.training.run_dir._lock.close()  # the process that held it would have ended

    @property
    def run(self) -> Path:
        return self.folder / "toy"

    def rows(self, kind: str = "update") -> list[dict]:
        found = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return [row for row in found if row["kind"] == kind]

    def checkpoint(self, update: int) -> dict:
        return json.loads((self.run / "checkpoints" / f"u{update:08d}" / "state.json").read_text())

    def weights(self, update: int) -> bytes:
        return (self.run / "checkpoints" / f"u{update:08d}" / "model.safetensors").read_bytes()

    def places(self, updates: int) -> Iterator[State]:
        """The place before each update of a run that nothing disturbs."""
        state = State(
            self.training.pinned.fingerprint,
            self.training.config.run.seed,
            self.training.config.optim.global_batch,
        )
        for _ in range(updates):
            yield state
            state = state.advanced(self.training.pinned.samples_per_epoch)

    def keys(self, state: State) -> list[str]:
        """Of the samples of one update, micro-batch by micro-batch, read anew."""
        config, training = self.training.config, self.training
        loader = Loader(
            training.pinned,
            config.data,
            config.masking,
            config.mixture,
            training.frames,
            config.engine.micro_batch,
            0,
            1,
        )
        with contextlib.closing(loader):
            stream = loader.stream(state)
            return [key for _ in range(loader.micro_batches(state)) for key in next(stream).keys]
