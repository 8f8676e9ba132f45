"""Arithmetic and memory, counted by watching torch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertConfig, HubertModel

from stages.pretrain.model.config import Model
from stages.pretrain.model.heads import CodeHead
from stages.pretrain.model.hubert import hubert_config
from stages.pretrain.model.objective import Objective
from tests.stages.pretrain.sizes import COLUMN, SLOW, mert, small


@pytest.mark.parametrize(
    "model", [Model(position_groups=1), small(position_groups=1), small(norm="pre", position_groups=1)]
)
def test_encoder_flops_are_those_of_the_reference(model):
    """torch's own counter over HubertModel, forward and backward, on tensors without memory.

    One group of positions: the counter takes a grouped convolution's backward pass for an ungrouped one's."""
    samples = 24_000
    with torch.device("meta"):
        theirs = HubertModel(HubertConfig(**hubert_config(model))).eval()
        theirs.set_attn_implementation("eager")  # whose products are counted in the backward pass, too
        net = mert(model, Objective(head_width=1), (), 1)
        wave_BN = torch.empty(1, samples)
    with FlopCounterMode(display=False) as counter:
        theirs(wave_BN).last_hidden_state.sum().backward()
    head = 3 * 2 * 0.58 * model.frames(samples) * model.width
    # theirs makes a 75th frame of positions
    assert net.flops(samples) - head == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_groups_divide_the_arithmetic_of_positions():
    one, four = (mert(small(position_groups=groups)).flops(24_000) for groups in (1, 4))
    assert one - four == 3 * 2 * 74 * 8 * 32 * 32 * (1 - 1 / 4)


def test_more_of_anything_costs_more():
    base = mert(small(), codes=(COLUMN,)).flops(24_000)
    for model in (small(layers=3), small(ffn=128), small(block="conformer", norm="pre")):
        assert mert(model).flops(24_000) > base
    assert mert(small(), codes=(COLUMN, SLOW)).flops(24_000) > base
    assert mert(small(front_end="mel")).flops(24_000) < base


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_code_loss_never_holds_frames_times_codes_times_width():
    frames, codes, width = 300, 500, 16
    head = CodeHead(32, 4, codes, width, 0.1, False)
    x_SD, codes_SK = torch.randn(frames, 32, requires_grad=True), torch.randint(codes, (frames, 4))
    with Largest() as largest:
        head(x_SD, codes_SK, (0, 1, 2, 3))[0].sum().backward()
    assert largest.elements <= frames * codes
    with Largest() as direct:
        table_CE = head.table_KCE[0]
        torch.cosine_similarity(
            head.projection(x_SD)[None, :, :width], table_CE[:, None], dim=-1
        ).sum().backward()
    assert direct.elements >= frames * codes * width
