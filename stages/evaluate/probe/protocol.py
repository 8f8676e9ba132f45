"""How features are judged on a task: splits and seeds, what validation chooses, and intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stages.evaluate.probe import heads, metrics
from stages.evaluate.probe.heads import Rows, Split
from stages.evaluate.probe.pooling import Features
from stages.evaluate.probe.task import Task

VERSION = 2  # of this module's and heads.py's arithmetic: results of another are computed anew
SEEDS = 5
FRAMES_AN_EPOCH = 8192
PROBES = ("linear", "knn", "mlp")
WEIGHTED = "weighted"  # the learnt sum of all layers
FEW_RESAMPLINGS = 200  # where the metric is computed anew for each


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    task: str
    encoder: str
    pooling: str
    probe: str
    layer: str  # a layer of the encoder's, `weighted`, or `best`: the one that validation chose
    metric: str
    score: float
    low: float  # 95 %, groups resampled
    high: float
    chosen: str  # layer and rate (of kNN: neighbours) of each run
    items: int
    groups: int
    item_scores: tuple[float, ...] = ()  # of the test items, for paired differences
    item_groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """Of one layer, rate and run: the score on validation, the outputs on test."""

    layer: str
    setting: str
    run: int
    valid: float
    output: np.ndarray


def judge(
    task: Task, encoder: str, layers: Sequence[str], features: Features, probes: Sequence[str] = PROBES
) -> list[Result]:
    """For every pooling: linear probes of the best layer on validation (of each run), of each layer in turn,
    and of the weighted sum; nearest neighbours; and an MLP where validation prefers the linear probe."""
    asked, found, linear = Asked(task, features), [], {}
    for pooling, x_NLF in asked.pooled(features).items():
        place = (encoder, pooling)
        own = [c for i, name in enumerate(layers) for c in asked.trained(x_NLF[:, i : i + 1], name)]
        linear[pooling] = asked.chosen(own)
        found.extend(asked.results(place, "linear", "best", own))
        if len(layers) > 1:
            for name in layers:
                found.extend(asked.results(place, "linear", name, [c for c in own if c.layer == name]))
            found.extend(asked.results(place, "linear", WEIGHTED, asked.trained(x_NLF, WEIGHTED)))
        if "knn" in probes and task.kind != "beats":
            near = [c for i, name in enumerate(layers) for c in asked.near(x_NLF[:, i : i + 1], name)]
            found.extend(asked.results(place, "knn", "best", near))
    if "mlp" in probes and task.kind != "beats":
        pooling = max(linear, key=lambda name: sum(c.valid for c in linear[name]))
        x_NLF, own = asked.pooled(features)[pooling], []
        for run, candidate in enumerate(linear[pooling]):
            i = layers.index(candidate.layer)
            own += asked.trained(x_NLF[:, i : i + 1], candidate.layer, heads.HIDDEN, [run])
        found.extend(asked.results((encoder, pooling), "mlp", "best", own))
    return found


class Asked:
    """A task as rows with targets, and its runs as row numbers: cross-validation runs each fold once with a
    seed of its own, a fixed split five times."""

    def __init__(self, task: Task, features: Features):
        self.task, self.metrics = task, metrics.metrics_of(task.kind, task.names)
        self.groups = [item.group for item in task.items]
        self.frame_s = features.frame_s
        self.target, self.outputs, self.loss = _targets(task)
        self.rows_of: list[np.ndarray] = [np.array([i]) for i in range(len(task.items))]
        if task.kind == "beats":
            counts = [len(part) for part in features.frames]
            edges = np.concatenate([[0], np.cumsum(counts)])
            self.rows_of = [np.arange(a, b) for a, b in zip(edges, edges[1:], strict=False)]
            self.beats = [np.array(item.target.split(), float) for item in task.items]
            pairs = zip(self.beats, counts, strict=True)
            self.target = torch.cat([beat_frames(times, count, self.frame_s) for times, count in pairs])
        runs = task.runs()
        self.runs = runs * SEEDS if len(runs) == 1 else runs
        self.splits = [self._split(run, seed) for seed, run in enumerate(self.runs)]

    def pooled(self, features: Features) -> dict[str, Tensor]:
        """fp32 (N, L, F) by pooling."""
        if self.task.kind == "beats":
            return {"frames": torch.from_numpy(np.concatenate(features.frames)).float()}
        both = np.concatenate([features.mean_NLD, features.deviation_NLD], 2)
        return {"mean": torch.from_numpy(features.mean_NLD), "mean+dev": torch.from_numpy(both)}

    def _split(self, run: tuple[set[str], set[str], set[str]], seed: int) -> Split:
        sides = []
        for side in run:
            numbers = [self.rows_of[i] for i, item in enumerate(self.task.items) if item.fold in side]
            sides.append(torch.from_numpy(np.concatenate(numbers)))
        return Split(*sides, seed)

    def items(self, run: int, side: int) -> list[int]:
        return [i for i, item in enumerate(self.task.items) if item.fold in self.runs[run][side]]

    def _rows(self, x_NLF: Tensor) -> Rows:
        few = FRAMES_AN_EPOCH if self.task.kind == "beats" else None
        return Rows(x_NLF, self.target, self.outputs, self.loss, few)

    def trained(
        self, x_NLF: Tensor, layer: str, hidden: int | None = None, runs: list[int] | None = None
    ) -> list[Candidate]:
        runs = list(range(len(self.runs))) if runs is None else runs
        splits = [self.splits[run] for run in runs]
        done = heads.train(self._rows(x_NLF), splits, self._quick_score, hidden, heads.RATES)
        found = []
        for i, run in enumerate(runs):
            for j, rate in enumerate(heads.RATES):
                valid, test = done.valid_output[i][j], done.test_output[i][j]
                if valid is None:  # never finite
                    continue
                found.append(Candidate(layer, f"{rate:g}", run, self._valid_score(run, valid), test))
        return found

    def near(self, x_NLF: Tensor, layer: str) -> list[Candidate]:
        found = []
        for run, split in enumerate(self.splits):
            valid, test = heads.neighbours(self._rows(x_NLF), split)
            for count, a, b in zip(heads.NEIGHBOURS, valid, test, strict=True):
                found.append(Candidate(layer, f"k={count}", run, self._valid_score(run, a), b))
        return found

    def _quick_score(self, rows: np.ndarray, output: np.ndarray) -> float:
        """For early stopping. A small part of the loss decides among equal scores."""
        if not np.isfinite(output).all():
            return -np.inf
        target = self.target[rows]
        loss = float(heads.loss_of(torch.from_numpy(output), target, self.loss))
        if self.task.kind in ("beats", "numbers"):
            return -loss
        return self._figure(target.numpy(), output) - 1e-4 * min(loss, 100.0)

    def _figure(self, target: np.ndarray, output: np.ndarray) -> float:
        return float(np.mean(self.metrics[0].of(target, output)))

    def _valid_score(self, run: int, output: np.ndarray) -> float:
        """The metric; of beats, whose search for a tempo takes long, the frames' cross entropy, negative."""
        rows = self.splits[run].valid.numpy()
        if self.task.kind == "beats":
            return self._quick_score(rows, output)
        return self._figure(self.target[rows].numpy(), output)

    def _beat_scores(self, items: list[int], output: np.ndarray) -> np.ndarray:
        scores, first = [], 0
        for item in items:
            after = first + len(self.rows_of[item])
            scores.append(metrics.beat_f(self.beats[item], output[first:after, 0], self.frame_s))
            first = after
        return np.array(scores)

    def chosen(self, candidates: list[Candidate]) -> list[Candidate]:
        """The best on validation of each run."""
        runs = range(len(self.runs))
        return [max((c for c in candidates if c.run == run), key=lambda c: c.valid) for run in runs]

    def results(
        self, place: tuple[str, str], probe: str, layer: str, candidates: list[Candidate]
    ) -> Iterator[Result]:
        """One a metric: of the best candidate of each run, over the test items of all runs."""
        best = self.chosen(candidates)
        chosen = " ".join(f"{c.layer}@{c.setting}" for c in best)
        items = [item for run in range(len(best)) for item in self.items(run, 2)]
        groups = [self.groups[item] for item in items]
        targets = [self.target[self.splits[c.run].test].numpy() for c in best]
        target, output = np.concatenate(targets), np.concatenate([c.output for c in best])
        for metric in self.metrics:
            of, scores = metric.of, None
            if self.task.kind == "beats":
                parts = [self._beat_scores(self.items(c.run, 2), c.output) for c in best]
                scores = np.concatenate(parts)
            elif metric.by_item:
                scores = of(target, output)
            if scores is None:
                score = float(np.mean([of(t, c.output) for t, c in zip(targets, best, strict=True)]))
                figure = partial(_again, of, target, output)
                low, high = metrics.interval(groups, figure, FEW_RESAMPLINGS)
            else:
                score = float(scores.mean())
                low, high = metrics.interval(groups, partial(_mean_of, scores))
            kept = () if scores is None else tuple(round(float(s), 4) for s in scores)
            facts = (
                metric.name,
                score,
                low,
                high,
                chosen,
                len(set(items)),
                len(set(groups)),
                kept,
                tuple(groups),
            )
            yield Result(self.task.name, *place, probe, layer, *facts)


def _again(of, target: np.ndarray, output: np.ndarray, index: np.ndarray) -> float:
    return float(of(target[index], output[index]))


def _mean_of(scores: np.ndarray, index: np.ndarray) -> float:
    return float(scores[index].mean())


def _targets(task: Task) -> tuple[Tensor, int, str]:
    texts = [item.target for item in task.items]
    if task.kind == "beats":
        return torch.zeros(0), 1, "binary"
    if task.kind == "key":
        return torch.tensor([metrics.key_number(t) for t in texts]), len(metrics.KEYS), "cross_entropy"
    if task.kind == "numbers":
        values = torch.tensor([[float(v) for v in t.split()] for t in texts])
        # R² stays as it is, and the rates suit figures of any unit
        values = (values - values.mean(0)) / values.std(0).clamp_min(1e-6)
        return values, values.shape[1], "square"
    if task.kind == "tags":
        names = sorted({tag for t in texts for tag in t.split("|") if tag})
        values = torch.tensor([[float(name in t.split("|")) for name in names] for t in texts])
        return values, len(names), "binary"
    names = sorted(set(texts))
    return torch.tensor([names.index(t) for t in texts]), len(names), "cross_entropy"


def beat_frames(times_s: np.ndarray, count: int, frame_s: float) -> Tensor:
    """fp32 (T, 1): 1 in a beat's frame, half of it in its neighbours."""
    target_T = np.zeros(count, np.float32)
    at = np.floor(times_s / frame_s).astype(int)
    for offset, value in ((-1, 0.5), (1, 0.5), (0, 1.0)):
        place = at + offset
        place = place[(place >= 0) & (place < count)]
        target_T[place] = np.maximum(target_T[place], value)
    return torch.from_numpy(target_T)[:, None]
