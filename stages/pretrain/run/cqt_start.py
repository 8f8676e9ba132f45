"""Where the CQT head starts: `objective.cqt_start`. Least squares finds at once what takes Adam hundreds of
updates: an untrained encoder's hidden states already hold the sound around a masked frame, by convolutional
positions and attention, which begins as a mean over the crop (figures: docs/training.md)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from stages.pretrain.data.batch import Batch, CodeColumn
from stages.pretrain.model.layers import autocast
from stages.pretrain.model.mert import MaskedFrames, Mert
from stages.pretrain.run import metrics
from stages.signal.rates import HOP_SAMPLES

# of the hidden values' mean variance: what the first updates change in small directions is not blown up (D)
RIDGE = 0.1


class CqtStart:
    """default: the head stays; mean: its bias becomes each bin's mean; fit: weight and bias become the ridge
    regression of its targets on the hidden states of the batches given to `add`, without dropout."""

    def __init__(self, model: Mert, how: str, dtype: torch.dtype):
        self.model, self.how, self.dtype = model, how, dtype
        # float64 (D + 1, D + 1) and (D + 1, F), of hidden values with a 1 appended
        self._moments = self._cross = 0.0

    @torch.no_grad()
    def add(self, batch: Batch) -> Batch:
        model, cqt_BLF = self.model, batch.cqt_BLF
        if self.how == "fit" and model.cqt_head and cqt_BLF is not None:
            training = model.training
            model.eval()
            with autocast(batch.wave_BN.device.type, self.dtype):
                _, hidden_BTD = model.encode(batch.wave_BN, batch.mask_BT)
            model.train(training)
            masked = MaskedFrames.of(batch.mask_BT)
            target_SF = model.cqt_head.target(masked.labels("cqt_BLF", cqt_BLF, HOP_SAMPLES)).double()
            x_SD = hidden_BTD[masked.clip_S, masked.frame_S].double()
            x_SD = torch.cat([x_SD, torch.ones_like(x_SD[:, :1])], 1)
            self._moments = self._moments + x_SD.T @ x_SD
            self._cross = self._cross + x_SD.T @ target_SF
        return batch

    def head(self, mean_F: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """fp32 weight (F, D) and bias (F,) on the CPU, None where it is to stay."""
        if self.how != "fit" or mean_F is None:
            return None, mean_F if self.how == "mean" else None
        frames = self._moments[-1, -1]
        moments, cross = self._moments / frames, self._cross / frames
        mean_D, bin_mean_F = moments[-1, :-1], cross[-1]
        covariance_DD = moments[:-1, :-1] - torch.outer(mean_D, mean_D)
        ridge_D = torch.full_like(mean_D, RIDGE * covariance_DD.diagonal().mean())
        cross_DF = cross[:-1] - torch.outer(mean_D, bin_mean_F)
        weight_DF = torch.linalg.solve(covariance_DD + torch.diag(ridge_D), cross_DF)
        return weight_DF.T.float().cpu(), (bin_mean_F - mean_D @ weight_DF).float().cpu()


def baselines_and_start(
    model: Mert, batches: Iterable[Batch], codes: tuple[CodeColumn, ...], how: str, dtype: torch.dtype
) -> tuple[metrics.Baselines, tuple[Tensor | None, Tensor | None]]:
    start, target = CqtStart(model, how, dtype), model.cqt_head.target if model.cqt_head else None
    counter = metrics.Counter(codes, target)
    for batch in batches:
        counter.add(start.add(batch))
    baselines = counter.baselines()
    return baselines, start.head(baselines.cqt_mean_F)
