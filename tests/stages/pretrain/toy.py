"""A small real model with real batches: noise for audio, labels that depend on nothing, masks as in
training."""

import numpy as np
import torch

from stages.pretrain.data import counter_rng
from stages.pretrain.data.batch import Batch, CodeColumn
from stages.pretrain.data.masking import Masking
from stages.pretrain.model.config import ConvFront, Model
from stages.pretrain.model.mert import Mert
from stages.pretrain.model.objective import Objective

CODES = (CodeColumn("codes-a", 3, 50), CodeColumn("codes-b", 1, 20))
BINS, SAMPLES, GLOBAL = 12, 320 * 40, 8
FRONT = ConvFront(channels=(16,) * 7)


def model(dropout: float = 0.0, layer_drop: float = 0.0, seed: int = 0, **objective) -> Mert:
    torch.manual_seed(seed)
    sizes = Model(
        conv=FRONT,
        layers=3,
        width=32,
        ffn=64,
        heads=4,
        position_kernel=16,
        position_groups=4,
        input_dropout=dropout,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        layer_drop=layer_drop,
    )
    return Mert(sizes, Objective(head_width=8, **objective), CODES, BINS)


def global_batch(update: int) -> Batch:
    """GLOBAL clips, a function of `update` alone."""
    random = torch.Generator().manual_seed(update)
    frames = Model(conv=FRONT).frames(SAMPLES)
    mask = torch.from_numpy(Masking().draw(counter_rng.keys(update, np.arange(GLOBAL)), frames))
    codes = {c.name: torch.randint(c.size, (GLOBAL, 40, c.codebooks), generator=random) for c in CODES}
    wave = torch.randn(GLOBAL, SAMPLES, generator=random) * 0.1
    return Batch(
        wave,
        mask,
        codes,
        torch.rand(GLOBAL, 40, BINS, generator=random),
        keys=[f"clip-{i}" for i in range(GLOBAL)],
    )


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(
        batch.wave_BN[rows],
        batch.mask_BT[rows],
        {k: v[rows] for k, v in batch.codes.items()},
        batch.cqt_BLF[rows],
        keys=batch.keys[rows],
    )
