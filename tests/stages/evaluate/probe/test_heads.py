"""Probes trained side by side are those that torch trains one by one, and find what is there to find."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stages.evaluate.probe import heads
from stages.evaluate.probe.heads import Heads, Rows, Split


def rows(layers=1, count=300, width=6, classes=3, seed=0):
    """The class is the largest of three features of layer 0, with a little noise."""
    random = torch.Generator().manual_seed(seed)
    x_NLF = torch.randn(count, layers, width, generator=random) * 3 + 5
    noise = 0.1 * torch.randn(count, classes, generator=random)
    return Rows(x_NLF, (x_NLF[:, 0, :classes] + noise).argmax(1), classes, "cross_entropy")


def split(count=300, seed=0):
    order = torch.arange(count)
    return Split(order[: count // 2], order[count // 2 : -count // 4], order[-count // 4 :], seed)


def accuracy(own):
    return lambda numbers, output: float((output.argmax(1) == own.target[numbers].numpy()).mean())


@pytest.mark.parametrize("hidden", [None, 16])
def test_a_class_that_is_there_is_found(hidden):
    own = rows()
    done = heads.train(own, [split()], accuracy(own), hidden)
    best = done.test_output[0][done.valid_score[0].argmax()]
    assert (best.argmax(1) == own.target[split().test].numpy()).mean() > 0.9


def test_what_is_not_there_is_not_found():
    own = rows()
    shuffled = Rows(
        own.x_NLF, own.target[torch.randperm(300, generator=torch.Generator().manual_seed(1))], 3, own.loss
    )
    done = heads.train(shuffled, [split()], accuracy(shuffled))
    for output in done.test_output[0]:
        assert (output.argmax(1) == shuffled.target[split().test].numpy()).mean() < 0.55


def test_outputs_are_of_standardised_features():
    own, one = rows(layers=2), split()
    made = Heads(own, [one], (0.1, 0.01), None)
    with torch.no_grad():
        made.layer_weights.copy_(torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(2)))
        found = made(own.x_NLF[one.test][None])[0]
    known = own.x_NLF[one.train]
    plain_NLF = (own.x_NLF[one.test] - known.mean(0)) / known.std(0)
    for rate in range(2):
        mixed_NF = (plain_NLF * made.layer_weights[0, rate].softmax(0)[:, None]).sum(1)
        expected = mixed_NF @ made.weights[0][0, rate] + made.biases[0][0, rate]
        torch.testing.assert_close(found[rate], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden", [None, 8])
def test_a_step_is_that_of_adam_with_each_rate(hidden):
    own, rates = rows(), (1e-2, 1e-4)
    together = Heads(own, [split(seed=3), split(seed=4)], rates, hidden).eval()
    optimiser = torch.optim.Adam(together.parameters(), lr=1.0)
    alone = [Heads(own, [split(seed=s)], (rate,), hidden).eval() for s in (3, 4) for rate in rates]
    plain = [torch.optim.Adam(one.parameters(), lr=rate) for one, rate in zip(alone, rates * 2, strict=True)]
    x_BLF, target_B = own.x_NLF[:64], own.target[:64]
    for _ in range(3):
        output = together(x_BLF.expand(2, -1, -1, -1))
        loss = heads.loss_of(output, target_B.expand(2, 2, -1), own.loss) * 4
        optimiser.zero_grad()
        loss.backward()
        heads._step(together, optimiser, torch.tensor(rates))
        for one, own_optimiser in zip(alone, plain, strict=True):
            own_optimiser.zero_grad()
            F.cross_entropy(one(x_BLF[None])[0, 0], target_B).backward()
            own_optimiser.step()
    for number, one in enumerate(alone):
        at = divmod(number, 2)
        for a, b in zip(together.weights, one.weights, strict=True):
            torch.testing.assert_close(a[at], b[0, 0], rtol=1e-4, atol=2e-6)


def test_every_rate_begins_with_the_same_values_and_every_seed_with_others():
    made = Heads(rows(), [split(seed=0), split(seed=1)], (0.1, 0.2), None)
    assert torch.equal(made.weights[0][0, 0], made.weights[0][0, 1])
    assert not torch.equal(made.weights[0][0, 0], made.weights[0][1, 0])


def test_the_best_epoch_on_validation_counts_and_the_end_comes_after_patience():
    own, scores = rows(), iter([0.1, 0.5] + [0.2] * 100)
    calls = []

    def score(_numbers, output):
        calls.append(output)
        return next(scores)

    done = heads.train(own, [split()], score, rates=(1e-2,))
    assert len(calls) == 2 + heads.PATIENCE
    assert done.valid_score[0, 0] == 0.5
    np.testing.assert_array_equal(done.valid_output[0][0], calls[1])


def test_training_is_the_same_twice_and_leaves_torch_as_it_was():
    own = rows()
    state = torch.random.get_rng_state()
    found = [heads.train(own, [split()], accuracy(own), 8).test_output[0][0] for _ in range(2)]
    np.testing.assert_array_equal(*found)
    assert torch.equal(state, torch.random.get_rng_state())


def test_weighted_sum_finds_the_layer_that_knows():
    own = rows(layers=3, count=600)
    made = {}
    first = Heads.__init__

    def kept(self, *arguments):
        first(self, *arguments)
        made["heads"] = self

    Heads.__init__ = kept
    try:
        heads.train(own, [split(600)], accuracy(own), rates=(1e-2,))
    finally:
        Heads.__init__ = first
    share_L = made["heads"].layer_weights[0, 0].softmax(0)
    assert share_L.argmax() == 0 and share_L[0] > 0.4


def test_an_epoch_of_frames_draws_so_many():
    random = [torch.Generator().manual_seed(0)]
    taken = list(heads._steps([split(4000)], random, 64, 128))
    assert [len(index) for (index,) in taken] == [64, 64]
    assert len(set(torch.cat([index for (index,) in taken]).tolist())) == 128


def test_nearest_neighbours_vote():
    x_NLF = torch.tensor([[[1.0, 0]], [[1, 0.1]], [[0, 1]], [[0.1, 1]], [[1, 0.05]], [[0, 2]]])
    own = Rows(x_NLF, torch.tensor([0, 0, 1, 1, 0, 1]), 2, "cross_entropy")
    one = Split(torch.arange(4), torch.tensor([4]), torch.tensor([5]), 0)
    valid, test = heads.neighbours(own, one)
    assert valid[0].argmax() == 0 and test[0].argmax() == 1
    assert len(valid) == len(heads.NEIGHBOURS)
    np.testing.assert_allclose(valid[2].sum(), 1, rtol=1e-5)
