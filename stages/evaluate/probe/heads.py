"""Linear and MLP probes as MARBLE trains them, many at once, and nearest neighbours.

G probes are trained side by side, since each is far too small to fill a core: one for each learning rate and
run. N rows, L layers (1 but for the weighted sum), F features, C outputs, B rows of a step."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATES = (1e-2, 5e-3, 1e-3, 5e-4, 1e-4)  # MARBLE's
EPOCHS, PATIENCE = 50, 8
HIDDEN, DROPOUT = 512, 0.2
NEIGHBOURS = (1, 3, 5, 10, 20)


@dataclass(frozen=True)
class Rows:
    """What is learnt from. `target`: int64 (N,), or float32 (N, C) of tags, numbers and beats."""

    x_NLF: Tensor  # fp32
    target: Tensor
    outputs: int
    loss: str  # cross_entropy | binary | square


@dataclass(frozen=True)
class Split:
    train: Tensor  # int64 row numbers
    valid: Tensor
    test: Tensor
    seed: int


class Heads(nn.Module):
    """One a (split, rate). With `hidden` an MLP: one layer so wide, ReLU, dropout 0.2. With more than one layer
    of features, their softmax-weighted sum, learnt too."""

    def __init__(self, rows: Rows, splits: list[Split], rates: tuple[float, ...], hidden: int | None):
        super().__init__()
        layers, width = rows.x_NLF.shape[1:]
        self.splits, self.rates = splits, rates
        count = len(splits) * len(rates)
        sizes = [width, hidden, rows.outputs] if hidden else [width, rows.outputs]
        self.layer_weights = nn.Parameter(torch.zeros(count, layers))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
            weights, biases = [], []
            for split in splits:  # every rate begins with the same values
                random = torch.Generator().manual_seed(100 * split.seed + i)
                bound = before**-0.5
                weights += [(torch.rand(before, after, generator=random) * 2 - 1) * bound] * len(rates)
                biases += [(torch.rand(1, after, generator=random) * 2 - 1) * bound] * len(rates)
            self.weights.append(nn.Parameter(torch.stack(weights)))
            self.biases.append(nn.Parameter(torch.stack(biases)))

    def forward(self, x_GBLF: Tensor) -> Tensor:
        """(G, B, C)"""
        if x_GBLF.shape[2] > 1:
            x = torch.einsum("gblf,gl->gbf", x_GBLF, self.layer_weights.softmax(1))
        else:
            x = x_GBLF[:, :, 0]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if i:
                x = F.dropout(F.relu(x), DROPOUT, self.training)
            x = torch.baddbmm(bias, x, weight)
        return x


@dataclass(frozen=True)
class Trained:
    """Of every split and rate: outputs (N_valid, C) and (N_test, C), and the validation score."""

    valid_score: np.ndarray  # (splits, rates)
    test_output: list[list[np.ndarray]]  # [split][rate]
    valid_output: list[list[np.ndarray]]


Score = Callable[[np.ndarray, np.ndarray], float]  # row numbers, outputs (rows, C) → higher is better


def train(
    rows: Rows, splits: list[Split], score: Score, hidden: int | None = None, rates: tuple[float, ...] = RATES
) -> Trained:
    """Adam; the epoch with the best validation score counts, and training ends when none of the probes has
    improved for `PATIENCE` epochs."""
    heads = Heads(rows, splits, rates, hidden)
    data = [_Standardised(rows, split) for split in splits]
    optimiser = torch.optim.Adam(heads.parameters(), lr=1.0, eps=1e-8)
    scale_G = torch.tensor(rates).repeat(len(splits))
    batch = 64 if max(len(s.train) for s in splits) < 4096 else 256
    randoms = [torch.Generator().manual_seed(1000 + split.seed) for split in splits]
    best: list[list] = [[(-np.inf, None, None)] * len(rates) for _ in splits]
    waited, torch_state = 0, torch.random.get_rng_state()
    torch.manual_seed(splits[0].seed)
    for _epoch in range(EPOCHS):
        _epoch_of(heads, rows, data, optimiser, scale_G, batch, randoms)
        waited = 0 if _judged(heads, data, score, best) else waited + 1
        if waited == PATIENCE:
            break
    torch.random.set_rng_state(torch_state)
    return Trained(
        np.array([[kept[0] for kept in of_split] for of_split in best]),
        [[kept[2] for kept in of_split] for of_split in best],
        [[kept[1] for kept in of_split] for of_split in best],
    )


class _Standardised:
    """Features of one split, each of mean 0 and deviation 1 over its training rows."""

    def __init__(self, rows: Rows, split: Split):
        self.split, known = split, rows.x_NLF[split.train]
        self.mean_LF, self.scale_LF = known.mean(0), known.std(0).clamp_min(1e-6)
        self.x_NLF = rows.x_NLF

    def __call__(self, index: Tensor) -> Tensor:
        return (self.x_NLF[index] - self.mean_LF) / self.scale_LF


def _epoch_of(heads, rows, data, optimiser, scale_G, batch, randoms) -> None:
    heads.train()
    orders = [
        d.split.train[torch.randperm(len(d.split.train), generator=random)]
        for d, random in zip(data, randoms, strict=True)
    ]
    rates = len(heads.rates)
    for step in range(-(-max(map(len, orders)) // batch)):
        taken = [order[torch.arange(step * batch, (step + 1) * batch) % len(order)] for order in orders]
        x_GBLF = torch.stack([d(index) for d, index in zip(data, taken, strict=True)]).repeat_interleave(
            rates, 0
        )
        target = torch.stack([rows.target[index] for index in taken]).repeat_interleave(rates, 0)
        loss = loss_of(heads(x_GBLF), target, rows.loss) * len(x_GBLF)  # each probe's own mean
        optimiser.zero_grad()
        loss.backward()
        _step(heads, optimiser, scale_G)


def _step(heads: Heads, optimiser: torch.optim.Adam, scale_G: Tensor) -> None:
    """A rate for each probe: Adam's step does not depend on the gradient's scale, so it is taken with rate 1
    and then shortened."""
    before = [parameter.detach().clone() for parameter in heads.parameters()]
    optimiser.step()
    with torch.no_grad():
        for parameter, old in zip(heads.parameters(), before, strict=True):
            parameter.copy_(old + (parameter - old) * scale_G.view(-1, *[1] * (parameter.dim() - 1)))


def loss_of(output: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean over rows: output (…, C), target int64 (…) or float32 (…, C)."""
    if kind == "cross_entropy":
        return F.cross_entropy(output.flatten(0, -2), target.flatten())
    return (F.binary_cross_entropy_with_logits if kind == "binary" else F.mse_loss)(output, target)


@torch.no_grad()
def _judged(heads: Heads, data: list, score: Score, best: list[list]) -> bool:
    """Keeps each probe's outputs where its validation score rose; True if any did."""
    heads.eval()
    rates, rose = len(heads.rates), False
    for number, d in enumerate(data):
        valid = _outputs(heads, d, d.split.valid, number, rates)
        test = None
        for rate in range(rates):
            found = score(d.split.valid.numpy(), valid[rate])
            if found > best[number][rate][0]:
                test = _outputs(heads, d, d.split.test, number, rates) if test is None else test
                best[number][rate] = (found, valid[rate], test[rate])
                rose = True
    return rose


def _outputs(heads: Heads, data: _Standardised, index: Tensor, number: int, rates: int) -> np.ndarray:
    """(rates, rows, C) of one split's probes."""
    whole = slice(number * rates, (number + 1) * rates)
    parts = []
    for rows in index.split(4096):
        x = data(rows)[None].expand(rates, -1, -1, -1)
        if x.shape[2] > 1:
            x = torch.einsum("gblf,gl->gbf", x, heads.layer_weights[whole].softmax(1))
        else:
            x = x[:, :, 0]
        for i, (weight, bias) in enumerate(zip(heads.weights, heads.biases, strict=True)):
            x = torch.baddbmm(bias[whole], F.relu(x) if i else x, weight[whole])
        parts.append(x)
    return torch.cat(parts, 1).numpy()


def neighbours(rows: Rows, split: Split) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs (rows, C) of the validation and of the test rows for each of NEIGHBOURS: the share, weighted by
    cosine similarity, of each class among the nearest training rows; of numbers their mean."""
    data = _Standardised(rows, split)
    known = F.normalize(data(split.train).flatten(1), dim=1)
    target = rows.target[split.train]
    value_NC = F.one_hot(target, rows.outputs).float() if rows.loss == "cross_entropy" else target
    found: tuple[list, list] = ([], [])
    for side, index in zip(found, (split.valid, split.test), strict=True):
        near = F.normalize(data(index).flatten(1), dim=1) @ known.T
        closeness, at = near.topk(min(max(NEIGHBOURS), len(known)), 1)
        for count in NEIGHBOURS:
            weight = closeness[:, :count].clamp_min(1e-6)
            weight = weight / weight.sum(1, keepdim=True)
            side.append((weight[..., None] * value_NC[at[:, :count]]).sum(1).numpy())
    return found
