"""One update by an engine alone, in the order of the loop: forward, agreement, the last backward, step."""

import math
from collections.abc import Callable
from types import SimpleNamespace

from stages.pretrain.data.batch import Batch
from stages.pretrain.run.engine import Engine


def update(
    engine: Engine,
    batches: list[Batch],
    frames: int,
    lr: float,
    draw: tuple,
    bad: Callable[[float], bool] = lambda loss: False,
) -> SimpleNamespace:
    """Sums over all ranks, and what the step did: grad_norm, skipped, scale."""
    sums: dict = {}
    for number, batch in enumerate(batches, 1):
        loss, terms = engine.forward(batch, *draw)
        sums = {name: value + sums.get(name, 0) for name, value in terms.items()}
        if number < len(batches):
            engine.backward(loss, frames)
    sums = engine.world.agree(sums).read()
    skip, scale = bad(float(sums["loss"]) / frames), engine.loss_scale.value
    engine.backward(loss * math.nan if skip else loss, frames)
    grad_norm, applied = engine.step(lr, skip)
    return SimpleNamespace(sums=sums, grad_norm=grad_norm, skipped=not applied, scale=scale)
