"""How much of the CQT a front-end's frames carry, before anything is learned: `python -m tests.bench.bench_front_end OUT`.

Ridge regression from one unmasked frame to the logarithm of the CQT at the same place, fitted on four fifths of the
crops and read on the others. Beside it, on masked frames, what knows the true CQT of the unmasked ones: the straight
line across the mask, and the mean of the crop. All as shares of the variance about each bin's mean.

B crops, T frames, C channels of a front-end, F CQT bins.
"""

import argparse

import torch
from torch import Tensor

from stages.pretrain.data import Data
from stages.pretrain.loader import Loader
from stages.pretrain.masking import Masking
from stages.pretrain.metrics import interpolated
from stages.pretrain.mixture import Mixture
from stages.pretrain.model.config import MelFront, Model
from stages.pretrain.model.front_end import front_end
from stages.pretrain.model.heads import LOG_FLOOR
from stages.pretrain.pinning import pin
from stages.pretrain.state import State

FRONT_ENDS = {"mel, 128 of 2,048 samples (default)": Model(front_end="mel"),
              "mel, 256 of 8,192 samples": Model(front_end="mel", mel=MelFront(256, 8192)),
              "cqt, 24 bins an octave (default)": Model(front_end="cqt")}
EDGE = 80  # frames at a crop's ends, where the longest windows and kernels meet zeros


def ridge_error(heard_BTC: Tensor, target_BTF: Tensor, fitted: int) -> float:
    """Mean square error on the crops from `fitted` on."""
    inner = slice(EDGE, -EDGE, 3)
    x_SC, y_SF = heard_BTC[:fitted, inner].flatten(0, 1).double(), target_BTF[:fitted, inner].flatten(0, 1).double()
    mean_C, scale_C = x_SC.mean(0), x_SC.std(0).clamp_min(1e-6)

    def ready(frames_SC: Tensor) -> Tensor:
        return torch.cat([(frames_SC - mean_C) / scale_C, torch.ones(len(frames_SC), 1, dtype=torch.float64)], 1)

    x_SC = ready(x_SC)
    gram_CC = x_SC.T @ x_SC + 1e-3 * len(x_SC) * torch.eye(x_SC.shape[1], dtype=torch.float64)
    weights_CF = torch.linalg.solve(gram_CC, x_SC.T @ y_SF)
    seen = ready(heard_BTC[fitted:, inner].flatten(0, 1).double())
    return float((seen @ weights_CF - target_BTF[fitted:, inner].flatten(0, 1)).square().mean())


def main() -> None:
    top = argparse.ArgumentParser(prog="python -m tests.bench.bench_front_end", description=__doc__.split("\n")[0])
    top.add_argument("out", help="what `make labels` made")
    top.add_argument("--crops", type=int, default=480)
    top.add_argument("--span", type=int, nargs="+", default=[5, 40])
    asked = top.parse_args()
    data, frames = Data(corpora=(asked.out,), workers=0), 375
    found, fitted = {}, asked.crops * 4 // 5
    for span in asked.span:
        pinned = pin(data)
        loader = Loader(pinned, data, Masking(span=span), Mixture(prob=0), frames, asked.crops)
        batch = next(loader.stream(State(pinned.fingerprint, 0, asked.crops)))
        target_BTF = (batch.cqt_BLF.float() + LOG_FLOOR).log()[:, :frames]
        mask_BT, mean_F = batch.mask_BT[fitted:], target_BTF[:fitted].mean((0, 1))
        read_BTF = target_BTF[fitted:]
        variance = float((read_BTF - mean_F).square().mean())
        kept_BT1 = (~mask_BT)[..., None].float()
        crop_mean_B1F = (read_BTF * kept_BT1).sum(1, keepdim=True) / kept_BT1.sum(1, keepdim=True)
        for name, guess in (("straight line", interpolated(read_BTF, mask_BT)), ("mean of the crop", crop_mean_B1F)):
            found[f"{name}, masked spans of {span}"] = float((read_BTF - guess)[mask_BT].square().mean()) / variance
    for name, model in FRONT_ENDS.items():
        front = front_end(model)
        heard_BTC = torch.cat([front(wave_BN, torch.float32) for wave_BN in batch.wave_BN.split(8)])
        found[name] = ridge_error(heard_BTC, target_BTF, fitted) / variance
    print(f"{asked.crops} crops of {asked.out}; share of the variance that is left")
    for name, share in found.items():
        print(f"{name:40} {share:.2f}")


if __name__ == "__main__":
    main()
