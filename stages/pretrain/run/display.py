"""A run's lines on a terminal, TensorBoard, Weights & Biases, and a picture of the curves."""

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.pretrain.run.rows import renamed
from stages.pretrain.run.settings import Watch


def line(row: dict[str, Any], updates: int) -> str:
    row, is_update = renamed(row), row["kind"] == "update"
    if row["kind"] == "probe":
        parts = [f"{'probes':>9} {row['update']}", f"same recording {_n(row['recording'], 2)}"]
        return "  ".join(parts + ([f"chroma R² {_n(row['chroma'], 2)}"] if "chroma" in row else []))
    parts = [f"{row['update']:>7}/{updates}" if is_update else f"{'held-out':>9} {row['update']}"]
    parts.append(f"loss {_n(row.get('loss'), 3)}")
    if row.get("ce"):
        parts += [f"ce {_n(row['ce'], 2)}", f"acc% {_n(row['accuracy'], 1, 100)}"]
        parts.append(f"gain_over_unigram {_n(row['gain_over_unigram'], 2)}")
    if row.get("gain_over_unigram_low"):
        low, high = (_n(row[f"gain_over_unigram_{end}"][0], 3) for end in ("low", "high"))
        parts.append(f"gain_over_unigram[0] in {low}…{high}")
    if row.get("cqt_error") is not None:
        own, mean, across = (_n(row[f"cqt_{name}"], 4) for name in ("error", "mean_error", "line_error"))
        parts.append(f"cqt {own} (mean {mean}, line {across})")
    if row.get("musical_error"):
        parts.append(f"musical {_n(row['musical_error'], 3)}")
    if is_update:
        parts += [f"grad {_n(row['grad_norm'], 2)}", f"lr {_n(row['lr'], 6)}"]
        if row.get("scale", 1) != 1:
            parts.append(f"scale {row['scale']:g}")
        parts.append(f"{_n(row['audio_s_per_s'], 1)} audio-s/s")
        parts += [f"{_n(row.get('utilisation'), 0, 100)}% of peak", f"wait {_n(row['data_wait'], 0, 100)}%"]
        if row.get("skipped"):
            parts.append(f"skipped {row['skipped']}")
        parts.append(f"left {duration(row.get('left_s'))}")
    else:
        parts.append(f"rank {_n(row.get('effective_rank', []), 0)}")
    return "  ".join(parts)


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "-"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}h{rest // 60:02}" if hours else f"{rest // 60}m{rest % 60:02}"


def _n(value: float | list[float | None] | None, digits: int, factor: float = 1) -> str:
    if isinstance(value, list):
        return " ".join(_n(one, digits, factor) for one in value)
    return "-" if value is None or not math.isfinite(value) else f"{value * factor:.{digits}f}"


class Boards:
    """Rank 0's; a figure of a row is a scalar, a list one per item."""

    def __init__(self, folder: Path, watch: Watch, name: str, config: dict[str, Any], purge: int):
        self._board = self._run = None
        if watch.tensorboard:
            _installed("tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        if watch.wandb:
            _installed("wandb")
            import wandb

            own = {"project": "overtone", "name": name, "id": name, "resume": "allow", "dir": str(folder)}
            self._run = wandb.init(config=config, **own)
            # its own step cannot go back, as a restored run does
            self._run.define_metric("*", step_metric="update")

    def add(self, row: dict[str, Any]) -> None:
        scalars = dict(pair for key, value in row.items() for pair in _scalars(f"{row['kind']}/{key}", value))
        for tag, value in scalars.items() if self._board else ():
            self._board.add_scalar(tag, value, row["update"])
        if self._run:
            self._run.log(scalars | {"update": row["update"]})

    def flush(self) -> None:
        if self._board:
            self._board.flush()


def _installed(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise ValueError(
            f"watch.{name} is True, but {name} is not installed: pip install {name}, or set "
            f"watch.{name}=false"
        )


def _scalars(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _scalars(f"{tag}/{i}", item)
    elif isinstance(value, int | float) and not tag.endswith(("/update", "/time")):
        yield tag, float(value)


def draw_curves(metrics: Path, picture: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:  # of a bare machine; metrics.jsonl has all of it
        return
    from matplotlib.figure import Figure

    rows = [renamed(json.loads(text)) for text in metrics.read_text().splitlines()]
    updates, valid, probes = ([r for r in rows if r["kind"] == kind] for kind in ("update", "valid", "probe"))
    if not updates:
        return
    targets = len(updates[0].get("musical_error", []))
    figure = Figure(figsize=(12, 12 if targets or probes else 8), layout="constrained")
    plots = [*figure.subplots(3 if targets or probes else 2, 2).flat]
    loss, gain, cqt, gradient, *further = plots
    titles = ("loss", "gain_over_unigram", "CQT error", "gradient norm", "musical error", "held-out probes")
    units = ("nats + error", "nats", "mean square", "", "mean square", "best layer")
    for axes, title, unit in zip(plots, titles, units, strict=False):
        axes.set(title=title, xlabel="update", ylabel=unit)
        for start in [r["update"] for r in rows if r["kind"] == "start"][1:]:
            axes.axvline(start, color="gray", lw=0.5, ls=":")
    _curve(loss, updates, "loss", "training")
    _curve(loss, valid, "loss", "held-out", "o-")
    for k in range(len(updates[0].get("gain_over_unigram", []))):
        _curve(gain, valid or updates, "gain_over_unigram", f"codebook {k}", "-", k)
    labels = {"error": "model", "mean_error": "mean of each bin", "line_error": "line across the mask"}
    for key, label in labels.items():
        _curve(cqt, valid or updates, f"cqt_{key}", label)
    _curve(gradient, updates, "grad_norm", "before clipping")
    if further:
        for k in range(targets):
            _curve(further[0], valid or updates, "musical_error", f"target {k}", "-", k)
        best = [
            row | {key: max(row[key]) for key in ("recording", "chroma") if row.get(key)} for row in probes
        ]
        _curve(further[1], best, "recording", "nearest crop is of the same recording", "o-")
        _curve(further[1], best, "chroma", "pitch classes, R²", "o-")
    for axes in plots:
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    attempt = picture.with_name(f".{picture.name}")
    figure.savefig(attempt, format="png", dpi=100)
    attempt.replace(picture)


def _curve(axes: Any, rows: list[dict], key: str, label: str, style: str = "-", k: int | None = None) -> None:
    points = [(r["update"], r[key] if k is None else r[key][k]) for r in rows if r.get(key) is not None]
    if points := [point for point in points if point[1] is not None]:
        axes.plot(*zip(*points, strict=True), style, label=label, lw=1, ms=3)
