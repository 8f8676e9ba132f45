"""What the loader hands to the model: one micro-batch, and what must be known of the label columns.

Letters: B clips, N samples at 24 kHz, T model frames, L label frames of a column, K codebooks, F CQT bins.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

RATE_HZ = 24_000  # M config/pretrain
HOP_SAMPLES = 320  # of a model frame: 75 Hz


@dataclass(frozen=True)
class CodeColumn:
    """One code column as its records describe it; the trainer has no constants of its own for these."""

    name: str  # codes-<recipe8>
    codebooks: int  # K
    size: int  # codes of one codebook
    hop_samples: int = HOP_SAMPLES  # of a label frame


@dataclass
class Batch:
    """One micro-batch. Everything random in it was drawn from (seed, epoch, position) of each sample."""

    wave_BN: Tensor  # float32, full scale ±1; what the model hears, mixture included
    mask_BT: Tensor  # bool; True where the model's input frame is replaced
    codes: dict[str, Tensor]  # column name → int64 (B, L, K); label frame i covers [hop i, hop i + hop) of the crop
    cqt_BLF: Tensor | None = None  # float32 (B, L, F) of the clean clip, as the column's record or `cqt: online` says
    context_BN: Tensor | None = None  # float32, the clean clip with its context on both sides, for `cqt: online`
    keys: list[str] = field(default_factory=list)  # of the segments, for messages
    positions: Tensor | None = None  # int64 (B,): place of each sample in the order of its epoch

    def to(self, device: torch.device | str) -> "Batch":
        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        return Batch(move(self.wave_BN), move(self.mask_BT), {k: move(v) for k, v in self.codes.items()}, move(self.cqt_BLF),
                     move(self.context_BN), self.keys, self.positions)

    def pin_memory(self) -> "Batch":
        def pin(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.pin_memory()

        return Batch(pin(self.wave_BN), pin(self.mask_BT), {k: pin(v) for k, v in self.codes.items()}, pin(self.cqt_BLF),
                     pin(self.context_BN), self.keys, self.positions)
