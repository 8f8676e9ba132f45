"""What happens to an update whose loss jumps or is not finite: skipped, counted, and acted upon when they
come in a row."""

import math
from collections import deque
from pathlib import Path

from stages.pretrain.run.settings import Guard


class LossGuard:
    """Decides from the mean loss over the global batch, so that every rank decides alike."""

    def __init__(self, guard: Guard, history: list[float] = (), in_a_row: int = 0, skipped: int = 0):
        self.guard, self.in_a_row, self.skipped = guard, in_a_row, skipped
        self.history: deque[float] = deque(history, maxlen=guard.window)

    def bad(self, loss: float) -> bool:
        """Whether an update of this mean loss is to be skipped."""
        if not math.isfinite(loss):
            return True
        full = len(self.history) == self.guard.window
        return (
            bool(self.guard.spike)
            and full
            and loss > self.guard.spike * sum(self.history) / len(self.history)
        )

    def note(self, loss: float, skipped: bool, scaled: bool) -> bool:
        """After an update; True when `guard.in_a_row` bad ones came together.

        `scaled`: fp16 found an overflow, which halves the loss scale and is no sign of trouble by itself.
        """
        if not skipped:
            self.history.append(loss)
            self.in_a_row = 0
            return False
        self.skipped += 1
        if scaled:
            return False
        self.in_a_row += 1
        return self.in_a_row >= self.guard.in_a_row

    def to_json(self) -> dict:
        return {"history": list(self.history), "in_a_row": self.in_a_row, "skipped": self.skipped}


def given_up(guard: Guard, reached: int, tried: str | None, metrics: Path) -> ValueError:
    """What to say when there is nothing left to try at update `reached`."""
    tried = tried or "there is no checkpoint to go back to, or guard.then is stop"
    return ValueError(
        f"{guard.in_a_row} updates in a row had a loss that jumped or was not finite, up to update "
        f"{reached}; {tried}: lower optim.lr, and see {metrics}"
    )
