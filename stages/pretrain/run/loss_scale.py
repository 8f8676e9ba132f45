"""fp16's loss scale: halved when gradients overflow, doubled after a long time without."""

from dataclasses import dataclass

START, LARGEST, SMALLEST = 2.0**16, 2.0**24, 1.0
GROW_AFTER = 2_000  # updates without overflow: torch.amp.GradScaler's


@dataclass
class LossScale:
    enabled: bool
    value: float = START
    good: int = 0

    def __post_init__(self):
        if not self.enabled:
            self.value = 1.0

    def update(self, applied: bool, bad_loss: bool) -> None:
        """`bad_loss`: the update was skipped for its loss, not for an overflow."""
        if not self.enabled or bad_loss:
            return
        self.good = self.good + 1 if applied else 0
        if not applied:
            self.value = max(SMALLEST, self.value / 2)
        elif self.good >= GROW_AFTER:
            self.value, self.good = min(LARGEST, self.value * 2), 0

    def to_json(self) -> dict:
        return {"value": self.value, "good": self.good}

    def from_json(self, data: dict) -> None:
        if self.enabled:
            self.value, self.good = data["value"], data["good"]
