"""Results as Markdown: the linear probe first, every other choice below, published figures beside, and on how
many tasks a model is ahead of each other encoder."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from stages.evaluate.probe import metrics
from stages.evaluate.probe.protocol import Result
from stages.evaluate.probe.published import beside

HEAD = """\
Frozen encoders. Layer and rate are chosen on validation, by each run for itself; the most frequent choice is
named. 95 % intervals resample groups. `weighted` is a learnt sum of all layers.
"""


def written(results: Sequence[Result], models: Sequence[str], notes: Iterable[str] = ()) -> str:
    """`models`: the encoders that are compared with all others."""
    parts = [HEAD, *(f"Note: {note}\n" for note in notes)]
    parts += [f"## {model}\n\n{ahead(results, model)}" for model in models]
    parts += ["## Linear probe, best layer\n\n" + _grid(results, "linear", "best")]
    for probe, layer in (("linear", "weighted"), ("mlp", "best"), ("knn", "best")):
        if grid := _grid(results, probe, layer):
            parts.append(f"## {probe}, {layer}{' layer' if layer == 'best' else ''}\n\n{grid}")
    parts += ["## Linear probe, layer by layer\n\n" + _layers(results, models)]
    if published := _published(results, models):
        parts.append("## Beside published figures\n\n" + published)
    return "\n".join(parts)


def shown(results: Sequence[Result], models: Sequence[str]) -> str:
    """For a terminal: the linear probe's score of each encoder by task, and who is ahead."""
    tasks = best(results)
    encoders = list(dict.fromkeys(e for rows in tasks.values() for e in rows))
    width = max(map(len, [*tasks, "task"])) + 1
    lines = ["task".ljust(width) + "".join(f"{name[:14]:>15}" for name in encoders)]
    for name, rows in tasks.items():
        scores = (f"{rows[e].score:.3f}" if e in rows else "" for e in encoders)
        lines.append(name.ljust(width) + "".join(f"{score:>15}" for score in scores))
    for model in models:
        for other, won, pairs, apart, *_ in compared(results, model):
            lines.append(
                f"{model} is ahead of {other} on {len(won)} of {pairs} tasks, intervals apart on {len(apart)}"
            )
    return "\n".join(lines)


def primary(results: Iterable[Result], probe: str = "linear", layer: str = "best") -> dict:
    """(task, pooling) → encoder → result, of each task's first metric."""
    found: dict[tuple[str, str], dict[str, Result]] = {}
    for row in results:
        if (row.probe, row.layer) == (probe, layer):
            found.setdefault((row.task, row.pooling), {}).setdefault(row.encoder, row)
    return found


def best(results: Iterable[Result]) -> dict[str, dict[str, Result]]:
    """task → encoder → the linear probe's row by the pooling that is better for that encoder."""
    found: dict[str, dict[str, Result]] = {}
    for (task, _), rows in primary(results).items():
        for encoder, row in rows.items():
            known = found.setdefault(task, {}).get(encoder)
            if known is None or row.score > known.score:
                found[task][encoder] = row
    return found


def compared(results: Iterable[Result], model: str) -> Iterator[tuple]:
    """Against each other encoder: its name, tasks won, tasks in all, those with intervals apart, those whose
    paired difference leaves zero out, the mean difference."""
    tasks = best(results)
    for other in dict.fromkeys(e for own in tasks.values() for e in own if e != model):
        pairs = [(own[model], own[other]) for own in tasks.values() if model in own and other in own]
        won = [a.task for a, b in pairs if a.score > b.score]
        apart = [a.task for a, b in pairs if a.low > b.high]
        paired = [a.task for a, b in pairs if _difference(a, b)[0] > 0]
        yield other, won, len(pairs), apart, paired, float(np.mean([a.score - b.score for a, b in pairs]))


def ahead(results: Iterable[Result], model: str) -> str:
    rows = [
        [
            other,
            f"{len(won)} of {pairs}",
            f"{len(apart)} {_listed(apart)}",
            f"{len(paired)} {_listed(paired)}",
            f"{mean:+.3f}",
        ]
        for other, won, pairs, apart, paired, mean in compared(results, model)
    ]
    head = ["against", "ahead", "intervals apart", "paired difference above zero", "mean difference"]
    return markdown(head, rows)


def _listed(names: list[str]) -> str:
    return f"({', '.join(names)})" if names else ""


def _difference(a: Result, b: Result) -> tuple[float, float]:
    """95 % of a minus b when both are resampled alike; (0, 0) where items have no scores."""
    if not a.item_scores or len(a.item_scores) != len(b.item_scores):
        return 0.0, 0.0
    difference = np.subtract(a.item_scores, b.item_scores)
    return metrics.interval(list(a.item_groups), lambda index: float(difference[index].mean()))


def _grid(results: Sequence[Result], probe: str, layer: str) -> str:
    found = primary(results, probe, layer)
    encoders = list(dict.fromkeys(e for rows in found.values() for e in rows))
    lines = []
    for (task, pooling), rows in found.items():
        first = next(iter(rows.values()))
        top = max(row.score for row in rows.values())
        cells = [_cell(rows.get(encoder), top) for encoder in encoders]
        lines.append([f"{task} ({first.items} of {first.groups})", first.metric, pooling, *cells])
    return markdown(["task (items of groups)", "metric", "pooling", *encoders], lines) if lines else ""


def _cell(row: Result | None, top: float) -> str:
    if row is None:
        return ""
    score = f"**{row.score:.3f}**" if row.score == top else f"{row.score:.3f}"
    choice = Counter(row.chosen.split()).most_common(1)[0][0]
    return f"{score} ({row.low:.3f} to {row.high:.3f}) {choice}"


def _layers(results: Sequence[Result], models: Sequence[str]) -> str:
    lines, most = [], 0
    for task, pooling, model in dict.fromkeys((r.task, r.pooling, r.encoder) for r in results):
        if model not in models and model != "untrained":
            continue
        own = [
            r for r in results if (r.task, r.pooling, r.encoder, r.probe) == (task, pooling, model, "linear")
        ]
        each = {r.layer: r for r in reversed(own) if r.layer not in ("best", "weighted")}
        most = max(most, len(each))
        lines.append([task, pooling, model, *(f"{each[name].score:.3f}" for name in reversed(each))])
    width = 3 + most
    return markdown(
        ["task", "pooling", "encoder", *map(str, range(most))], [_filled(r, width) for r in lines]
    )


def _filled(row: list[str], width: int) -> list[str]:
    return row + [""] * (width - len(row))


def _published(results: Sequence[Result], models: Sequence[str]) -> str:
    lines = []
    for row in results:
        if row.encoder not in models or row.layer != "best" or row.probe == "knn":
            continue
        rows = beside(row.task, row.metric, 100 * row.score, f"{row.encoder} ({row.probe}, {row.pooling})")
        if len(rows) > 1:
            lines += [[r.task, r.metric, r.model, f"{r.value:.1f}", r.source or r.protocol] for r in rows]
    return markdown(["task", "metric", "model", "value", "source"], lines) if lines else ""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
