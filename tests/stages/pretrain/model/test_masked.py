"""What stands at a masked frame: the vector, the line across it, and never what was masked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pretrain.model.masked import apply_mask, interpolated
from tests.stages.pretrain.sizes import batch, mert, small


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda m: not all(m)), st.integers(0, 1000))
def test_the_line_across_the_mask_is_numpys(masked, seed):
    mask = np.array(masked)
    x = np.random.default_rng(seed).normal(size=(len(mask), 3)).astype(np.float32)
    found = interpolated(torch.from_numpy(x)[None], torch.from_numpy(mask)[None])[0].numpy()
    places = np.arange(len(mask))
    for f in range(3):
        assert np.allclose(found[:, f], np.interp(places, places[~mask], x[~mask, f]), atol=1e-5)


@pytest.mark.parametrize("line", [False, True])
def test_masked_frames_become_the_vector_and_the_line(line):
    x_BTD = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(5))
    mask_BT = torch.zeros(2, 9, dtype=torch.bool)
    mask_BT[0, 2:5] = mask_BT[1, 7:] = True
    vector_D = torch.tensor([1.0, -2.0, 3.0])
    found = apply_mask(x_BTD, mask_BT, vector_D, line)
    assert torch.equal(found[~mask_BT], x_BTD[~mask_BT])
    if line:
        torch.testing.assert_close(found[0, 3], vector_D + (x_BTD[0, 1] + x_BTD[0, 5]) / 2)
        torch.testing.assert_close(found[1, 8], vector_D + x_BTD[1, 6])
    else:
        assert torch.equal(found[mask_BT], vector_D.expand(5, 3))


@pytest.mark.parametrize("line", [False, True])
def test_nothing_that_was_masked_is_heard(line):
    """Other values at the masked frames of the input embedding change no prediction."""
    net = mert(small(norm="pre", masked_input="line" if line else "vector")).eval()
    inputs = batch(net)
    features_BTC, _ = net._features(inputs["wave_BN"], torch.float32)
    other_BTC = torch.where(inputs["mask_BT"][..., None], torch.randn_like(features_BTC), features_BTC)
    with torch.no_grad():
        assert torch.equal(
            net._encode(features_BTC, inputs["mask_BT"], None)[1],
            net._encode(other_BTC, inputs["mask_BT"], None)[1],
        )
        assert not torch.equal(
            net._encode(features_BTC, None, None)[1], net._encode(other_BTC, None, None)[1]
        )
