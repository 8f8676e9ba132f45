"""Adam and its learning rate: MERT's schedule, and a cosine."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from stages.config import require


@dataclass(frozen=True)
class Optim:
    """What an update is. Numbers: M config/pretrain (recipe.md, Optimisation)."""

    updates: int = 400_000
    warmup_updates: int = 32_000
    schedule: str = "linear"  # linear (M) | cosine, both to 0 after the last update
    rate: float = 5e-4  # at the peak
    # of `rate`, for the CQT head: what `objective.cqt_start: fit` found is then kept, not found anew (D)
    cqt_head_rate: float = 1.0
    global_batch: int = 1080  # crops an update, over all ranks and micro-batches: 1.5 h of 5 s
    betas: tuple[float, ...] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = 0.01  # decoupled, as fairseq's Adam applies it
    clip_norm: float = 10.0  # of the global gradient

    def __post_init__(self):
        require(self.updates >= 1, "optim.updates", self.updates, "expected at least 1")
        require(
            0 <= self.warmup_updates <= self.updates,
            "optim.warmup_updates",
            self.warmup_updates,
            "expected 0 to optim.updates",
        )
        require(
            self.schedule in ("linear", "cosine"),
            "optim.schedule",
            self.schedule,
            "expected linear or cosine",
        )
        require(self.rate > 0, "optim.rate", self.rate, "expected above 0")
        require(
            self.cqt_head_rate >= 0,
            "optim.cqt_head_rate",
            self.cqt_head_rate,
            "expected 0 (the head stays as it began) or more",
        )
        require(self.global_batch >= 1, "optim.global_batch", self.global_batch, "expected at least 1 crop")
        require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "optim.betas",
            self.betas,
            "expected two numbers in [0, 1)",
        )
        require(self.epsilon > 0, "optim.epsilon", self.epsilon, "expected above 0")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "expected 0 or more")
        require(
            self.clip_norm > 0,
            "optim.clip_norm",
            self.clip_norm,
            "expected above 0; a large number does not clip",
        )

    def lr_at(self, update: int) -> float:
        """The rate of update `update` (the first is 0): linear warm-up, then decay to 0 at `updates`."""
        if update < self.warmup_updates:
            return self.rate * (update + 1) / self.warmup_updates
        share = (update - self.warmup_updates) / max(1, self.updates - self.warmup_updates)
        if self.schedule == "cosine":
            return self.rate * 0.5 * (1 + math.cos(math.pi * share))
        return self.rate * (1 - share)


class Adam(torch.optim.AdamW):
    """AdamW with decoupled decay over named parameters; `skip` leaves its next step out."""

    skip = False

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], optim: Optim):
        own, head = [], []
        for name, parameter in named:
            (head if name.startswith("cqt_head.") and optim.cqt_head_rate != 1 else own).append(parameter)
        groups = [{"params": own, "share": 1.0}, {"params": head, "share": optim.cqt_head_rate}]
        options = {"betas": tuple(optim.betas), "eps": optim.epsilon, "weight_decay": optim.weight_decay}
        super().__init__([group for group in groups if group["params"]], lr=optim.rate, **options)

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["share"]

    def step(self, closure=None):
        if not self.skip:
            super().step(closure)
