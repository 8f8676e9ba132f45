"""Linear and MLP probes as MARBLE trains them, many at once, and nearest neighbours.

S · R probes are trained side by side, since one is far too small to fill a core: one for each split and rate.
N rows, L layers (1 but for the weighted sum), F features, C outputs, B rows of a step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATES = (1e-2, 5e-3, 1e-3, 5e-4, 1e-4)  # MARBLE's
EPOCHS, PATIENCE = 50, 8
HIDDEN, DROPOUT = 512, 0.2
BATCHES = ((64, 4096), (256, 16384), (1024, 1 << 62))  # rows of a step, for fewer training rows than
NEIGHBOURS = (1, 3, 5, 10, 20)


@dataclass(frozen=True)
class Rows:
    """What is learnt from. `target`: int64 (N,), or float32 (N, C) of tags, numbers and beats."""

    x_NLF: Tensor  # fp32
    target: Tensor
    outputs: int
    loss: str  # cross_entropy | binary | square
    epoch_rows: int | None = None  # drawn for each epoch, where neighbouring rows are nearly the same


@dataclass(frozen=True)
class Split:
    train: Tensor  # int64 row numbers
    valid: Tensor
    test: Tensor
    seed: int


class Heads(nn.Module):
    """One a split and rate. With `hidden` an MLP: a layer so wide, ReLU, dropout 0.2. Of several layers of
    features their softmax-weighted sum, learnt too."""

    def __init__(self, rows: Rows, splits: list[Split], rates: tuple[float, ...], hidden: int | None):
        super().__init__()
        self.splits = splits
        layers, width = rows.x_NLF.shape[1:]
        sizes = [width, hidden, rows.outputs] if hidden else [width, rows.outputs]
        known = [rows.x_NLF[split.train] for split in splits]
        self.mean_SLF = torch.stack([x_NLF.mean(0) for x_NLF in known])
        self.scale_SLF = torch.stack([x_NLF.std(0).clamp_min(1e-6) for x_NLF in known])
        self.layer_weights = nn.Parameter(torch.zeros(len(splits), len(rates), layers))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
            made = [_initial(before, after, 100 * split.seed + i) for split in splits]
            weights, biases = (torch.stack(kind) for kind in zip(*made, strict=True))
            self.weights.append(nn.Parameter(weights[:, None].repeat(1, len(rates), 1, 1)))
            self.biases.append(nn.Parameter(biases[:, None].repeat(1, len(rates), 1, 1)))

    def forward(self, x_SBLF: Tensor, split: slice = slice(None)) -> Tensor:
        """(S, R, B, C): of these splits, S, each rate, R. Features are standardised, to mean 0 and deviation
        1 of the training rows, on the side of the weights, which are far fewer."""
        share_SRL = self.layer_weights[split].softmax(2)
        share_SRLF1 = share_SRL[..., None, None] / self.scale_SLF[split][:, None, ..., None]
        weight_SRLFC = share_SRLF1 * self.weights[0][split][:, :, None]
        shift = torch.einsum("slf,srlfc->src", self.mean_SLF[split], weight_SRLFC)
        x = torch.einsum("sblf,srlfc->srbc", x_SBLF, weight_SRLFC) + self.biases[0][split] - shift[:, :, None]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            x = F.dropout(F.relu(x), DROPOUT, self.training) @ weight[split] + bias[split]
        return x


def _initial(before: int, after: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weight and bias as torch's linear draws them; every rate begins with the same."""
    random, bound = torch.Generator().manual_seed(seed), before**-0.5
    return tuple((torch.rand(rows, after, generator=random) * 2 - 1) * bound for rows in (before, 1))


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
    optimiser = torch.optim.Adam(heads.parameters(), lr=1.0)
    longest = max(len(split.train) for split in splits)
    batch = next(size for size, rows_below in BATCHES if longest < rows_below)
    randoms = [torch.Generator().manual_seed(1000 + split.seed) for split in splits]
    best: list[list] = [[(-np.inf, None, None)] * len(rates) for _ in splits]
    waited = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(splits[0].seed)  # of dropout
        for _epoch in range(EPOCHS):
            heads.train()
            for taken in _steps(splits, randoms, batch, rows.epoch_rows):
                x_SBLF = torch.stack([rows.x_NLF[index] for index in taken])
                target = torch.stack([rows.target[index] for index in taken])
                output = heads(x_SBLF)
                target = target[:, None].expand(-1, len(rates), *target.shape[1:])
                # each probe's own mean
                loss = loss_of(output, target, rows.loss) * len(splits) * len(rates)
                optimiser.zero_grad()
                loss.backward()
                _step(heads, optimiser, torch.tensor(rates))
            waited = 0 if _judged(heads, rows, score, best) else waited + 1
            if waited == PATIENCE:
                break
    return Trained(
        np.array([[kept[0] for kept in of_split] for of_split in best]),
        [[kept[2] for kept in of_split] for of_split in best],
        [[kept[1] for kept in of_split] for of_split in best],
    )


def _steps(
    splits: list[Split], randoms: list[torch.Generator], batch: int, most: int | None
) -> Iterator[list[Tensor]]:
    """One epoch's row numbers, of each split. A shorter one begins anew."""
    pairs = zip(splits, randoms, strict=True)
    orders = [s.train[torch.randperm(len(s.train), generator=random)[:most]] for s, random in pairs]
    for first in range(0, max(map(len, orders)), batch):
        yield [order[torch.arange(first, first + batch) % len(order)] for order in orders]


def _step(heads: Heads, optimiser: torch.optim.Adam, rate_R: Tensor) -> None:
    """A rate for each probe: Adam's step does not depend on the rate, so it is taken with 1 and shortened."""
    before = [parameter.detach().clone() for parameter in heads.parameters()]
    optimiser.step()
    with torch.no_grad():
        for parameter, old in zip(heads.parameters(), before, strict=True):
            parameter.copy_(torch.lerp(old, parameter, rate_R.view(1, -1, *[1] * (parameter.dim() - 2))))


def loss_of(output: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean over rows: output (…, C), target int64 (…) or float32 (…, C)."""
    if kind == "cross_entropy":
        return F.cross_entropy(output.flatten(0, -2), target.flatten())
    return (F.binary_cross_entropy_with_logits if kind == "binary" else F.mse_loss)(output, target)


@torch.no_grad()
def _judged(heads: Heads, rows: Rows, score: Score, best: list[list]) -> bool:
    """Keeps each probe's outputs where its validation score rose; True if any did."""
    heads.eval()
    rose = False
    for number, split in enumerate(heads.splits):
        valid_RNC, test_RNC = _outputs(heads, rows, split.valid, number), None
        for rate, valid_NC in enumerate(valid_RNC):
            found = score(split.valid.numpy(), valid_NC)
            if found > best[number][rate][0]:
                test_RNC = _outputs(heads, rows, split.test, number) if test_RNC is None else test_RNC
                best[number][rate] = (found, valid_NC, test_RNC[rate])
                rose = True
    return rose


def _outputs(heads: Heads, rows: Rows, index: Tensor, number: int) -> np.ndarray:
    """(R, rows, C) of one split's probes."""
    of = slice(number, number + 1)
    return torch.cat([heads(rows.x_NLF[part][None], of)[0] for part in index.split(8192)], 1).numpy()


def neighbours(rows: Rows, split: Split) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs (rows, C) of the validation and of the test rows for each of NEIGHBOURS: the share, weighted by
    cosine similarity, of each class among the nearest training rows; of numbers their mean."""
    x_NF = rows.x_NLF.flatten(1)
    x_NF = (x_NF - x_NF[split.train].mean(0)) / x_NF[split.train].std(0).clamp_min(1e-6)
    known = F.normalize(x_NF[split.train], dim=1)
    target = rows.target[split.train]
    value_NC = F.one_hot(target, rows.outputs).float() if rows.loss == "cross_entropy" else target
    found: tuple[list, list] = ([], [])
    for side, index in zip(found, (split.valid, split.test), strict=True):
        near = F.normalize(x_NF[index], dim=1) @ known.T
        closeness, at = near.topk(min(max(NEIGHBOURS), len(known)), 1)
        for count in NEIGHBOURS:
            weight = closeness[:, :count].clamp_min(1e-6)
            weight = weight / weight.sum(1, keepdim=True)
            side.append((weight[..., None] * value_NC[at[:, :count]]).sum(1).numpy())
    return found
