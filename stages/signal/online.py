"""`cqt: online`: the constant-Q frames of a training crop, computed instead of stored.

They are those of the whole recording: the lowest kernels reach 25,230 samples to either side. (MERT uses the
bare crop: its low bins are wrong for a second at both ends.) B clips, N samples with the context on both
sides, L frames, F bins."""

from pathlib import Path

import torch
from torch import Tensor

from stages.signal.cqt import ConstantQ, log_magnitude
from stages.signal.cqt_tables import MERT, CqtSpec
from stages.signal.tables import table_cache


class OnlineCqt:
    """Called with each batch's context. Its tables (59 MB) are kept in `cache_dir`, else `table_cache()`."""

    def __init__(
        self,
        spec: CqtSpec = MERT,
        magnitude: str = "linear",
        device: str | torch.device = "cpu",
        cache_dir: Path | None = None,
    ):
        """magnitude: "linear" as MERT, or "log" (natural, floored at 1e-6)."""
        if magnitude not in ("linear", "log"):
            raise ValueError(f"magnitude is {magnitude!r}: expected linear or log")
        self.spec, self.magnitude = spec, magnitude
        self._transform = ConstantQ(spec, cache_dir or table_cache(), device)

    @property
    def context_samples(self) -> int:
        """What must surround a crop on either side; zeros beyond the recording's ends."""
        return self.spec.context_samples

    @torch.no_grad()
    def __call__(self, context_BN: Tensor) -> Tensor:
        """float32 (B, N) → float32 (B, L, F), L = floor((N − 2·context_samples) / hop), in any autocast.

        Frame i is centred on sample hop·i of the crop, which begins at context_samples. ValueError: another
        dtype, shape or device, or fewer samples than the context alone."""
        device, samples = self._transform.device, context_BN.shape[-1]
        if context_BN.device.type != device.type:
            where = f"context_BN is on {context_BN.device}, the tables on {device}"
            raise ValueError(f"{where}: move it with .to()")
        context = self.context_samples
        if samples < 2 * context:
            raise ValueError(
                f"context_BN has {samples} samples: expected a crop and {context} more on either side"
            )
        hop = self.spec.hop_samples
        frames_BLF = self._transform.frames(context_BN, context, (samples - 2 * context) // hop)
        return log_magnitude(frames_BLF) if self.magnitude == "log" else frames_BLF
