"""How a run computes, steps, guards, saves and shows."""

import math
from typing import Annotated, Literal

from pydantic import Field

from stages.config import (
    NUMBER,
    Count,
    Flag,
    Natural,
    NotNegative,
    Pair,
    Positive,
    ShareBelow1,
    Whole,
    check,
    remedy,
    settings,
)


@settings
class EngineSettings:
    """How an update is computed; changes nothing about what is learned, within rounding."""

    micro_batch: Count = 8  # crops of one forward pass on one rank
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"  # fp16: on a GPU only
    # 0: every rank holds all; 1: optimiser split; 2: gradients too; 3: weights too
    zero_stage: Annotated[Natural, Field(le=3)] = 1
    offload_optimizer: Flag = False  # moments and fp32 weights of the optimiser in host memory
    compile: Flag = False  # torch.compile, stages 0 to 2
    deepspeed: str | None = None  # a DeepSpeed JSON merged into ours; conflicts are refused

    def __post_init__(self):
        hooks = "ZeRO 3 gathers weights by hooks: use stage 0 to 2"
        check(not self.compile or self.zero_stage < 3, self, "compile", hooks)
        split = not self.offload_optimizer or self.zero_stage > 0
        check(split, self, "offload_optimizer", "needs zero_stage 1, 2 or 3")

    def copies(self, ranks: int) -> float:
        """fp32 copies of the weights that the optimiser adds on one rank: two moments, from stage 1 on
        also weights, split."""
        return 2.0 if self.zero_stage == 0 else 3.0 / ranks


@settings
class Optim:
    """What an update is. Numbers: M config/pretrain (recipe.md, Optimisation)."""

    updates: Count = 400_000  # of the weights, after which the run is finished
    warmup_updates: Natural = 32_000  # of linear rise
    schedule: Literal["linear", "cosine"] = "linear"  # linear (M); both to 0 after the last update
    lr: Positive = 5e-4  # at the peak
    # factor of `lr` for the CQT head: what `objective.cqt_start: fit` found is then kept, not found anew (D)
    cqt_head_lr_scale: Annotated[NotNegative, remedy("0 leaves the head as it began")] = 1.0
    global_batch: Count = 1080  # crops an update, over all ranks and micro-batches: 1.5 h of 5 s
    betas: Annotated[Pair[ShareBelow1], remedy("expected two numbers in [0, 1)")] = (0.9, 0.98)  # of Adam
    epsilon: Positive = 1e-6  # of Adam
    weight_decay: NotNegative = 0.01  # decoupled, as fairseq's Adam applies it
    clip_norm: Annotated[Positive, remedy("a large number does not clip")] = 10.0  # of the global gradient

    def __post_init__(self):
        most = f"expected 0 to optim.updates, {self.updates}"
        check(self.warmup_updates <= self.updates, self, "warmup_updates", most)

    def lr_at(self, update: int) -> float:
        """Of update 0, 1, …"""
        if update < self.warmup_updates:
            return self.lr * (update + 1) / self.warmup_updates
        share = (update - self.warmup_updates) / max(1, self.updates - self.warmup_updates)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * share))
        return self.lr * (1 - share)


@settings
class Guard:
    """What happens when an update's loss or gradient is not finite, or its loss jumps."""

    # skip an update whose loss is above this many times the mean of the last ones; null: none
    spike: Annotated[float, Field(gt=1), NUMBER] | None = 3.0
    window: Count = 50  # updates of that mean; none is judged before so many were seen
    in_a_row: Count = 10  # bad updates after which `then` happens
    # restore: go on from the last good checkpoint, past the data since
    then: Literal["stop", "restore"] = "stop"


@settings
class CheckpointSettings:
    """Written at whichever comes first, at SIGTERM or Ctrl-C, and at the end."""

    every_updates: Count = 1000  # this
    every_minutes: Positive = 30.0  # or this
    keep: Count = 3  # the newest, and the best by validation loss
    at: str | None = None  # folder or s3:// prefix; unset: RUN/checkpoints


@settings
class Watch:
    """What people see while it trains."""

    validate_every: Count = 1000  # updates
    # updates; 0: never. What the layers know of held-out music: see `held_out_probes`
    probe_every: Natural = 0
    # resamplings of the held-out recordings, for the gain's interval
    bootstrap: Annotated[Whole, Field(ge=100)] = 1000
    baseline_crops: Count = 512  # training crops from which code frequencies and CQT means are counted
    tensorboard: Flag = True  # writes RUN/tensorboard
    wandb: Flag = False  # Weights & Biases, when it is installed
    live: Flag = True  # a live view on a terminal
