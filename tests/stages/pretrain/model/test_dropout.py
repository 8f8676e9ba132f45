"""Cheap dropout has dropout's distribution; attention with it is attention."""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F

from stages.pretrain.model.attention import attend
from stages.pretrain.model.layers import dropout, kept


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9])
def test_distribution(share):
    torch.manual_seed(1)
    mask = kept(torch.Size((700, 1001)), share, torch.float32)
    n = mask.numel()
    zeros = (mask == 0).double()
    assert zeros.mean().item() == pytest.approx(share, abs=5 * sqrt(share * (1 - share) / n))
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - share)], rel=2e-4)
    assert mask.double().mean().item() == pytest.approx(1, abs=5 * sqrt(share / (1 - share) / n))
    for lag in (1, 2, 3, 4, 1001):  # neighbours share a word of random bits, and know nothing of each other
        a, b = zeros.flatten()[:-lag] - share, zeros.flatten()[lag:] - share
        assert (a * b).mean().item() == pytest.approx(0, abs=5 * share * (1 - share) / sqrt(n))


def test_torchs_seed_decides_and_each_draw_is_new():
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.5)) and not torch.equal(first, second)


def test_attention_with_dropout_is_right_on_average():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 9, 8).unbind()
    exact = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value, 0.0), exact)
    torch.testing.assert_close(attend(query, key, value, 1e-9), exact)
    found = torch.stack([attend(query, key, value, 0.2) for _ in range(3000)])
    assert (found.mean(0) - exact).abs().max() < 6 * found.std(0).max() / sqrt(3000)
    theirs = torch.stack(
        [F.scaled_dot_product_attention(query, key, value, dropout_p=0.2) for _ in range(3000)]
    )
    torch.testing.assert_close(found.std(0), theirs.std(0), rtol=0.15, atol=0.01)
