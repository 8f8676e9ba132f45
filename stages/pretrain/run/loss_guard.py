"""An update whose loss jumps or is not finite is skipped; several in a row stop the run or restore a
checkpoint."""

import math
from collections import deque
from pathlib import Path

import torch
from torch import Tensor

from stages.pretrain.run.settings import Guard


class LossGuard:
    def __init__(self, guard: Guard, history: list[float] = (), in_a_row: int = 0, skipped: int = 0):
        self.guard, self.in_a_row, self.skipped = guard, in_a_row, skipped
        self.history = deque(history, maxlen=guard.window)

    @property
    def limit(self) -> float:
        """The largest mean loss that is no jump."""
        spike, history = self.guard.spike, self.history
        jumps = spike and len(history) == history.maxlen
        return spike * sum(history) / len(history) if jumps else math.inf

    def bad(self, loss: float) -> bool:
        """Whether to skip an update of this mean loss over the global batch: every rank decides alike."""
        return not math.isfinite(loss) or loss > self.limit

    def judged(self, loss: Tensor, mean: Tensor) -> Tensor:
        """The loss, or NaN where an update of this mean is bad, decided where they are: no host waits."""
        bad = ~mean.isfinite() | (mean > self.limit)
        return loss * torch.ones_like(loss).masked_fill(bad, math.nan)

    def note(self, loss: float, skipped: bool, overflow: bool) -> bool:
        """After an update; True when `guard.in_a_row` bad ones came together. fp16's `overflow` is none."""
        if not skipped:
            self.history.append(loss)
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += not overflow
        return not overflow and self.in_a_row >= self.guard.in_a_row

    def to_json(self) -> dict:
        return {"history": list(self.history), "in_a_row": self.in_a_row, "skipped": self.skipped}


def given_up(guard: Guard, update: int, tried: str | None, metrics: Path) -> ValueError:
    tried = tried or "there is no checkpoint to go back to, or guard.then is stop"
    return ValueError(
        f"{guard.in_a_row} updates in a row had a loss that jumped or was not finite, up to update {update}; "
        f"{tried}: lower optim.lr, and see {metrics}"
    )
