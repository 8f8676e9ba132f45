"""What the loader hands to the model, and what must be known of the label columns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stages.signal.rates import HOP_SAMPLES


@dataclass(frozen=True)
class CodeColumn:
    """As its records describe it; the trainer has no such constants of its own."""

    name: str  # codes-<recipe8>
    codebooks: int
    size: int  # codes of one codebook
    hop_samples: int = HOP_SAMPLES  # of a label frame


@dataclass
class Batch:
    """Everything random in it was drawn from (seed, epoch, position) of each sample."""

    wave_BN: Tensor  # float32, full scale ±1; the input, mixture included
    mask_BT: Tensor  # bool; True where the model's input frame is replaced
    # column name → int64 (B, L, K); label frame i covers [hop i, hop i + hop) of the crop; see `stacked`
    codes: dict[str, Tensor]
    # float32 (B, L, F) of the clean clip, as the column's record or `cqt: online` has it
    cqt_BLF: Tensor | None = None
    # float32, the clean clip with its context on both sides, for `cqt: online`
    context_BN: Tensor | None = None
    keys: list[str] = field(default_factory=list)  # of the segments, for messages
    recordings: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # place of each sample in the order of its epoch
    # `key: reason` of samples that failed and were replaced
    replaced: list[str] = field(default_factory=list)
    # int64 (B, M): the masked frames, ascending, where every clip has as many: a device that had to find them
    # would keep its host waiting
    masked_BM: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._moved(Tensor.pin_memory)

    def stacked(self, stack: int) -> "Batch":
        """Labels of frames of `stack` label frames each: the codes of the middle one, the mean of the CQT."""
        if stack == 1:
            return self
        codes = {name: codes_BLK[:, stack // 2 :: stack] for name, codes_BLK in self.codes.items()}
        cqt_BLF = self.cqt_BLF
        if cqt_BLF is not None:
            whole = cqt_BLF.shape[1] // stack * stack
            cqt_BLF = cqt_BLF[:, :whole].unflatten(1, (-1, stack)).mean(2)
        return replace(self, codes=codes, cqt_BLF=cqt_BLF)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        moved = {name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, codes={name: move(value) for name, value in self.codes.items()}, **moved)
