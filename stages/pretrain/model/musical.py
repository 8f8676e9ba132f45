"""Musical targets beside the CQT, computed from its frames: what no single bin says.

chroma: power of the twelve pitch classes, over all octaves, relative to the loudest class
harmony: the same, averaged over a second to each side
onsets: how far each octave's log magnitudes rise above the frame before, on average

F bins of the CQT, V values of all targets asked for."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.signal.rates import HOP_SAMPLES, RATE_HZ

CLASSES = 12
SILENCE = 1e-4  # power added to each class: a frame far below it has all classes alike
LOG_FLOOR = 1e-3  # of magnitudes, as the CQT's own target
# mean and deviation of 13 minutes of 19 recordings (D): targets are near 0 and 1, so that weights compare
SCALES = {"chroma": (0.24, 0.30), "harmony": (0.24, 0.24), "onsets": (0.19, 0.24)}


class MusicalHead(nn.Module):
    """float (S, D) → fp32 (S, V), in fp32 throughout, as `target` has it."""

    def __init__(self, width: int, names: tuple[str, ...], bins: int, bins_per_octave: int, stack: int):
        """`stack`: label frames of one model frame, as the CQT that `target` is given."""
        super().__init__()
        self.names = names
        self.reach = max(1, round(RATE_HZ / HOP_SAMPLES / stack))  # frames of a second
        octaves = -(-bins // bins_per_octave)
        self.sizes = tuple(octaves if name == "onsets" else CLASSES for name in names)
        self.projection = nn.Linear(width, sum(self.sizes))
        place_F = torch.arange(bins)
        self._class_F = (place_F * CLASSES / bins_per_octave).round().long() % CLASSES
        self._octave_F = place_F // bins_per_octave

    def forward(self, x_SD: Tensor) -> Tensor:
        return F.linear(x_SD.float(), self.projection.weight.float(), self.projection.bias.float())

    @torch.no_grad()
    def target(self, cqt_BLF: Tensor) -> Tensor:
        """fp32 (B, L, V) of linear magnitudes (B, L, F)."""
        magnitude_BLF, found = cqt_BLF.float(), []
        for name in self.names:
            made = self._onsets(magnitude_BLF) if name == "onsets" else self._chroma(magnitude_BLF)
            if name == "harmony":
                pool = {"kernel_size": 2 * self.reach + 1, "stride": 1, "padding": self.reach}
                made = F.avg_pool1d(made.transpose(1, 2), **pool, count_include_pad=False).transpose(1, 2)
            mean, deviation = SCALES[name]
            found.append((made - mean) / deviation)
        return torch.cat(found, 2)

    def errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """fp32 (…, M), of each of M targets the mean square over its values, of (…, V) both."""
        squares = (predicted - target).square().split(self.sizes, -1)
        return torch.stack([part.mean(-1) for part in squares], -1)

    def _chroma(self, magnitude_BLF: Tensor) -> Tensor:
        power_BLC = self._summed(magnitude_BLF.square(), self._class_F, CLASSES) + SILENCE
        return power_BLC / power_BLC.amax(2, keepdim=True)

    def _onsets(self, magnitude_BLF: Tensor) -> Tensor:
        log_BLF, octaves = (magnitude_BLF + LOG_FLOOR).log(), int(self._octave_F[-1]) + 1
        rise_BLF = F.pad(log_BLF.diff(dim=1).relu(), (0, 0, 1, 0))
        bins_O = torch.bincount(self._octave_F).to(rise_BLF)
        return self._summed(rise_BLF, self._octave_F, octaves) / bins_O

    @staticmethod
    def _summed(x_BLF: Tensor, group_F: Tensor, groups: int) -> Tensor:
        one_FG = F.one_hot(group_F, groups).to(x_BLF)
        return x_BLF @ one_FG
