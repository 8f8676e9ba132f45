"""Models and batches small enough for tests, shared by several files."""

import torch

from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.config import ConvFront, CqtFront, MelFront, Model
from stages.pretrain.model.mert import Mert
from stages.pretrain.model.objective import Objective

CONV = ConvFront(channels=(16,) * 7)
COLUMN = CodeColumn("codes-a", codebooks=3, size=20)
SLOW = CodeColumn("codes-b", codebooks=2, size=12, hop_samples=960)
BINS = 7


def small(**changes) -> Model:
    """Two layers of 32, without anything random, unless asked."""
    plain = {
        "conv": CONV,
        "mel": MelFront(mels=24, n_fft=512),
        "cqt": CqtFront(24, 12, 220.0),
        "layers": 2,
        "width": 32,
        "ffn": 64,
        "heads": 4,
        "position_kernel": 8,
        "position_groups": 4,
        "conformer_kernel": 5,
        "input_dropout": 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_drop": 0.0,
        "gradient_scale": 1.0,
    }
    return Model(**plain | changes)


def mert(
    model: Model | None = None,
    objective: Objective | None = None,
    codes=(COLUMN,),
    bins: int | None = BINS,
    seed: int = 0,
) -> Mert:
    torch.manual_seed(seed)
    return Mert(model or small(), objective or Objective(head_width=6), codes, bins)


def batch(net: Mert, clips: int = 2, samples: int = 16_000, seed: int = 0) -> dict:
    """Arguments of `Mert.forward`: noise, about half of the frames masked, random labels."""
    draw = torch.Generator().manual_seed(seed)
    frames = net.model.frames(samples)
    wave_BN = torch.randn(clips, samples, generator=draw) * 0.1
    mask_BT = torch.rand(clips, frames, generator=draw) < 0.5
    codes = {
        c.name: torch.randint(c.size, (clips, frames * 320 // c.hop_samples + 1, c.codebooks), generator=draw)
        for c in net.codes
    }
    cqt_BLF = torch.rand(clips, frames + 2, net.cqt_bins, generator=draw) if net.cqt_bins else None
    return {"wave_BN": wave_BN, "mask_BT": mask_BT, "codes": codes, "cqt_BLF": cqt_BLF}
