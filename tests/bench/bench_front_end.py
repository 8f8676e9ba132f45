"""How much of the CQT a front-end's frames carry, before anything is learned: `python -m
tests.bench.bench_front_end OUT`.

Ridge regression from one unmasked frame to the logarithm of the CQT at the same place, fitted on four fifths
of the crops and read on the others. Beside it, on masked frames, what knows the true CQT of the unmasked
ones: the straight line across the mask, and the mean of the crop; and least squares on what an untrained
encoder makes of the masked crop, which is where `objective.cqt_start: fit` begins. All as shares of the
variance about each bin's mean.

B crops, T frames, C channels of a front-end, F CQT bins.
"""

import argparse

import torch
from torch import Tensor

from stages.pretrain.data.batch import Batch
from stages.pretrain.data.loader import Loader
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from stages.pretrain.model.config import CqtFront, MelFront, Model
from stages.pretrain.model.front_end import front_end
from stages.pretrain.model.heads import LOG_FLOOR
from stages.pretrain.model.masked import interpolated
from stages.pretrain.model.mert import Mert
from stages.pretrain.model.objective import Objective
from stages.pretrain.run.cqt_start import CqtStart

FRONT_ENDS = {
    "mel, 128 of 2,048 samples (default)": Model(front_end="mel"),
    "mel, 256 of 8,192 samples": Model(front_end="mel", mel=MelFront(256, 8192)),
    "cqt, 24 bins an octave (default)": Model(front_end="cqt"),
    "cqt, 48 bins an octave": Model(front_end="cqt", cqt=CqtFront(336, 48)),
}
ENCODERS = {
    "untrained encoder": {},
    "untrained encoder, alibi": {"attention_bias": "alibi"},
    "untrained encoder, masked frames not attended to": {"attend_masked": False},
    "untrained encoder, both": {"attention_bias": "alibi", "attend_masked": False},
    "untrained encoder, line": {"masked_input": "line"},
    "untrained encoder, all three": {
        "attention_bias": "alibi",
        "attend_masked": False,
        "masked_input": "line",
    },
}
EDGE = 80  # frames at a crop's ends, where the longest windows and kernels meet zeros


def ridge_error(heard_BTC: Tensor, target_BTF: Tensor, fitted: int) -> float:
    """Mean square error on the crops from `fitted` on."""
    inner = slice(EDGE, -EDGE, 3)
    x_SC, y_SF = (
        heard_BTC[:fitted, inner].flatten(0, 1).double(),
        target_BTF[:fitted, inner].flatten(0, 1).double(),
    )
    mean_C, scale_C = x_SC.mean(0), x_SC.std(0).clamp_min(1e-6)

    def ready(frames_SC: Tensor) -> Tensor:
        return torch.cat(
            [(frames_SC - mean_C) / scale_C, torch.ones(len(frames_SC), 1, dtype=torch.float64)], 1
        )

    x_SC = ready(x_SC)
    gram_CC = x_SC.T @ x_SC + 1e-3 * len(x_SC) * torch.eye(x_SC.shape[1], dtype=torch.float64)
    weights_CF = torch.linalg.solve(gram_CC, x_SC.T @ y_SF)
    seen = ready(heard_BTC[fitted:, inner].flatten(0, 1).double())
    return float((seen @ weights_CF - target_BTF[fitted:, inner].flatten(0, 1)).square().mean())


def untrained_error(choices: dict, batch: Batch, target_BTF: Tensor, fitted: int) -> float:
    """Mean square error on the masked frames of the crops from `fitted` on, of the CQT head that starts as
    `fit` says."""
    torch.manual_seed(0)
    sizes = Model(
        front_end="cqt", cqt=CqtFront(336, 48), layers=6, width=256, ffn=1024, heads=4, norm="pre", **choices
    )
    net = Mert(sizes, Objective(cqt_target="log"), (), target_BTF.shape[2]).eval()
    start, sum_, count = CqtStart(net, "fit", torch.float32), 0.0, 0
    for first in range(0, len(target_BTF), 8):
        rows = slice(first, first + 8)
        part = Batch(batch.wave_BN[rows], batch.mask_BT[rows], {}, batch.cqt_BLF[rows])
        if first < fitted:
            start.add(part)
            continue
        if not count:
            net.cqt_head.start(*start.head(target_BTF[:fitted].mean((0, 1))))
        error_SF = (net.predict(part.wave_BN, part.mask_BT)[1] - target_BTF[rows])[part.mask_BT].square()
        sum_, count = sum_ + float(error_SF.sum()), count + error_SF.numel()
    return sum_ / count


@torch.no_grad()
def main() -> None:
    top = argparse.ArgumentParser(
        prog="python -m tests.bench.bench_front_end", description=__doc__.split("\n")[0]
    )
    top.add_argument("out", help="what `make labels` made")
    top.add_argument("--crops", type=int, default=640)
    top.add_argument(
        "--span", type=int, nargs="+", default=[5, 80, 120, 40], help="in frames; the encoders see the last"
    )
    top.add_argument(
        "--mixture", type=float, default=0.0, help="share of crops with pieces of others in what is heard"
    )
    asked = top.parse_args()
    data, frames = Data(corpora=(asked.out,), workers=0), 375
    found, fitted = {}, asked.crops * 4 // 5 // 8 * 8
    for span in asked.span:
        pinned = pin(data)
        loader = Loader(pinned, data, Masking(span=span), Mixture(prob=asked.mixture), frames, asked.crops)
        batch = next(loader.stream(State(pinned.fingerprint, 0, asked.crops)))
        target_BTF = (batch.cqt_BLF.float() + LOG_FLOOR).log()[:, :frames]
        mask_BT, mean_F = batch.mask_BT[fitted:], target_BTF[:fitted].mean((0, 1))
        read_BTF = target_BTF[fitted:]
        variance = float((read_BTF - mean_F).square().mean())
        kept_BT1 = (~mask_BT)[..., None].float()
        crop_mean_B1F = (read_BTF * kept_BT1).sum(1, keepdim=True) / kept_BT1.sum(1, keepdim=True)
        for name, guess in (
            ("straight line", interpolated(read_BTF, mask_BT)),
            ("mean of the crop", crop_mean_B1F),
        ):
            found[f"{name}, masked spans of {span}"] = (
                float((read_BTF - guess)[mask_BT].square().mean()) / variance
            )
    for name, model in FRONT_ENDS.items():
        front = front_end(model)
        heard_BTC = torch.cat([front(wave_BN, torch.float32) for wave_BN in batch.wave_BN.split(8)])
        found[name] = ridge_error(heard_BTC, target_BTF, fitted) / variance
    for name, choices in ENCODERS.items():
        found[f"{name}, masked spans of {span}"] = (
            untrained_error(choices, batch, target_BTF, fitted) / variance
        )
    print(f"{asked.crops} crops of {asked.out}; share of the variance that is left")
    for name, share in found.items():
        print(f"{name:70} {share:.2f}")


if __name__ == "__main__":
    main()
