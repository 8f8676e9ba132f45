"""`cqt: online`: the constant-Q frames of a training crop, computed from the crop and its surroundings.

Instead of a stored column. Frames are those of the whole recording, not of a crop between zeros: the lowest
kernels reach 25,230 samples to either side. (MERT uses the bare crop: its low bins are wrong for a second at
both ends.) B clips, N samples of a clip with its context on both sides, L frames, F bins."""

from pathlib import Path

import torch
from torch import Tensor

from stages.signal.cqt import ConstantQ, log_magnitude
from stages.signal.cqt_tables import MERT, CqtSpec
from stages.signal.tables import table_cache


class OnlineCqt:
    """Tables on one device, kept in `cache_dir` (default: `table_cache()`), 59 MB; called with each batch's
    context."""

    def __init__(
        self,
        spec: CqtSpec = MERT,
        magnitude: str = "linear",
        device: str | torch.device = "cpu",
        cache_dir: Path | None = None,
    ):
        """magnitude: "linear" as MERT, or "log" (natural, floored at 1e-6). ValueError for another."""
        if magnitude not in ("linear", "log"):
            raise ValueError(f"magnitude is {magnitude!r}: expected linear or log")
        self.spec, self.magnitude = spec, magnitude
        self._transform = ConstantQ(spec, cache_dir or table_cache(), device)

    def to(self, device: str | torch.device) -> "OnlineCqt":
        self._transform.to(device)
        return self

    @property
    def context_samples(self) -> int:
        """What must surround a crop on either side (default 25,230); zeros beyond the recording's ends."""
        return self.spec.context_samples

    @torch.no_grad()
    def __call__(self, context_BN: Tensor) -> Tensor:
        """float32 (B, N) → float32 (B, L, F), L = floor((N − 2·context_samples) / hop), in any autocast.

        Frame i is centred on sample hop·i of the crop, which begins at context_samples. ValueError: another
        dtype or shape, another device than the tables', or fewer samples than the context alone."""
        device, samples = self._transform.device, context_BN.shape[-1]
        if context_BN.device.type != device.type:
            raise ValueError(
                f"context_BN is on {context_BN.device}, the tables on {device}: move one of them with .to()"
            )
        context = self.context_samples
        if samples < 2 * context:
            raise ValueError(
                f"context_BN has {samples} samples: expected a crop and {context} more on either side"
            )
        count = (samples - 2 * context) // self.spec.hop_samples
        frames_BLF = self._transform.frames(context_BN, context, count)
        return log_magnitude(frames_BLF) if self.magnitude == "log" else frames_BLF
