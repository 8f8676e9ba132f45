"""The model's own input frame as a target, whitened: every direction in which it varies weighs the same, so
that hidden states keep what is heard and no label names, such as timbre.

F values of one front-end frame; of a model frame of several, their mean."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE = 0.01  # of the mean variance: directions far below it, which are rounding and silence, stay small (D)


class InputHead(nn.Module):
    """float (S, D) → fp32 (S, F), in fp32 throughout, as `target` has it."""

    def __init__(self, width: int, channels: int, stack: int):
        super().__init__()
        self.stack = stack
        self.projection = nn.Linear(width, channels)
        # found anew at every start, from the same crops: no state of a checkpoint's
        self._mean_F, self._whiten_FF = torch.zeros(channels), torch.eye(channels)

    def forward(self, x_SD: Tensor) -> Tensor:
        return F.linear(x_SD.float(), self.projection.weight.float(), self.projection.bias.float())

    @torch.no_grad()
    def target(self, features_BtF: Tensor) -> Tensor:
        """fp32 (B, T, F) of front-end frames (B, t, F), `stack` of which are one of T."""
        if self._mean_F.device != features_BtF.device:
            self.start(self._mean_F.to(features_BtF.device), self._whiten_FF.to(features_BtF.device))
        return (self._frames(features_BtF) - self._mean_F) @ self._whiten_FF

    @torch.no_grad()
    def moments(self, features_BtF: Tensor) -> Tensor:
        """float64 (F + 1, F + 1): second moments of frames with a 1 appended, to be added up for `start`."""
        frames_SF = self._frames(features_BtF).flatten(0, 1).double()
        frames_SF = F.pad(frames_SF, (0, 1), value=1.0)
        return frames_SF.T @ frames_SF

    def start(self, mean_F: Tensor, whiten_FF: Tensor) -> None:
        """fp32; see `whitening`."""
        self._mean_F, self._whiten_FF = mean_F, whiten_FF

    def _frames(self, features_BtF: Tensor) -> Tensor:
        whole = features_BtF.shape[1] // self.stack * self.stack
        return features_BtF[:, :whole].float().unflatten(1, (-1, self.stack)).mean(2)


def whitening(moments: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 (F,) and (F, F) on the CPU: the mean, and the symmetric root of the inverse covariance, which no
    order of directions changes."""
    moments = (moments / moments[-1, -1]).cpu()
    mean_F = moments[:-1, -1]
    value_F, direction_FF = torch.linalg.eigh(moments[:-1, :-1] - torch.outer(mean_F, mean_F))
    scale_F = (value_F.clamp_min(0) + RIDGE * value_F.mean()).rsqrt()
    return mean_F.float(), ((direction_FF * scale_F) @ direction_FF.T).float()
