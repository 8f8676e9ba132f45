"""`engine.compile`: the same numbers, and one compiled form whatever layers an update leaves out."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from stages.pretrain.model.mert import Mert
from tests.stages.pretrain.sizes import batch, mert, small

NEEDS_COMPILER = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")]
BACKENDS = ("aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER))
SIZES = (
    {},
    {"norm": "pre"},
    {"positions": "rotary", "block": "conformer", "norm": "pre"},
    {"front_end": "mel", "attention_bias": "alibi"},
    {"activation_checkpointing": True},
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def updates(net: Mert, count: int) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and the last gradients; each update leaves other layers out."""
    losses = []
    for update in range(count):
        net.zero_grad()
        keep_layers = tuple(bool(update >> layer & 1) for layer in range(net.model.layers))
        loss = net(**batch(net, seed=update), keep_layers=keep_layers)["loss"]
        loss.backward()
        losses.append(float(loss.detach()))
    return losses, [p.grad.clone() for p in net.parameters() if p.grad is not None]


def compiled(options: dict, **sizes) -> Mert:
    net = mert(small(**sizes))
    net.compile(**options)
    return net


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: " ".join(sizes) or "default")
def test_losses_and_gradients_are_those_of_the_plain_model(backend, sizes):
    sizes = {"layers": 3} | sizes
    losses, gradients = updates(mert(small(**sizes)), 8)
    again, close = updates(compiled({"backend": backend}, **sizes), 8)
    assert again == pytest.approx(losses, rel=1e-5)
    for ours, plain in zip(close, gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5 * float(plain.abs().max() + 1))


def test_layers_left_out_cost_no_further_compilation():
    net = compiled({"backend": "aot_eager"}, layers=3)
    updates(net, 8)  # every choice of three layers
    assert counters["stats"]["unique_graphs"] == 3  # the front-end, the positions, and one layer for all
    assert not counters["graph_break"]
