"""What people see of a run: the line of an update, TensorBoard, Weights & Biases, and a picture of the
curves."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from stages.pretrain.run.settings import Watch


def line(row: dict[str, Any], updates: int) -> str:
    """One dense line of a `metrics.jsonl` row of kind update or valid."""
    parts = [
        f"{row['update']:>7}/{updates}" if row["kind"] == "update" else f"{'held-out':>9} {row['update']}",
        f"loss {_n(row.get('loss'), 3)}",
    ]
    if row.get("ce"):
        parts += [
            f"ce {_list(row['ce'], 2)}",
            f"acc% {_list([_times(a, 100) for a in row['accuracy']], 1)}",
            f"gain {_list(row['gain'], 2)}",
        ]
    if row.get("gain_low"):
        parts.append(f"gain[0] in {_n(row['gain_low'][0], 3)}…{_n(row['gain_high'][0], 3)}")
    if row.get("cqt_error") is not None:
        parts.append(
            f"cqt {_n(row['cqt_error'], 4)} (mean {_n(row['cqt_mean_error'], 4)}, line "
            f"{_n(row['cqt_line_error'], 4)})"
        )
    if row["kind"] == "valid":
        return "  ".join([*parts, f"rank {_list(row.get('effective_rank', []), 0)}"])
    parts += [f"grad {_n(row['grad_norm'], 2)}", f"rate {_n(row['rate'], 6)}"]
    if row.get("scale", 1) != 1:
        parts.append(f"scale {row['scale']:g}")
    parts += [
        f"{_n(row['audio_s_per_s'], 1)} audio-s/s",
        f"{_n(_times(row.get('utilisation'), 100), 0)}% of peak",
    ]
    parts.append(f"wait {_n(_times(row['data_wait'], 100), 0)}%")
    if row.get("skipped"):
        parts.append(f"skipped {row['skipped']}")
    return "  ".join([*parts, f"left {duration(row.get('left_s'))}"])


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "-"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}h{rest // 60:02}" if hours else f"{rest // 60}m{rest % 60:02}"


def _n(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _list(values: list[float | None], digits: int) -> str:
    return " ".join(_n(v, digits) for v in values)


class Boards:
    """TensorBoard and Weights & Biases of rank 0; each named figure of a row is a scalar, a list one a
    codebook."""

    def __init__(self, folder: Path, watch: Watch, name: str, config: dict[str, Any], purge: int):
        self._writers: list[Any] = []
        if watch.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
            self._writers.append(
                lambda row, step: [writer.add_scalar(tag, value, step) for tag, value in row.items()]
            )
            self._flush = writer.flush
        if watch.wandb:
            if importlib.util.find_spec("wandb") is None:
                raise ValueError(
                    "watch.wandb is True, but wandb is not installed: pip install wandb, or set "
                    "watch.wandb=false"
                )
            import wandb

            run = wandb.init(
                project="overtone", name=name, id=name, resume="allow", config=config, dir=str(folder)
            )
            # its own step cannot go back, as a restored run does
            run.define_metric("*", step_metric="update")
            self._writers.append(lambda row, step: run.log(row | {"update": step}))

    def add(self, row: dict[str, Any]) -> None:
        scalars = dict(
            found for key, value in row.items() for found in _scalars(f"{row['kind']}/{key}", value)
        )
        for write in self._writers:
            write(scalars, row["update"])

    def flush(self) -> None:
        if hasattr(self, "_flush"):
            self._flush()


def _scalars(tag: str, value: Any):
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _scalars(f"{tag}/{i}", item)
    elif isinstance(value, int | float) and not tag.endswith(("/update", "/time")):
        yield tag, float(value)


def draw_curves(metrics: Path, picture: Path) -> None:
    """RUN/curves.png: loss, gain of each codebook, CQT error beside its baselines, gradient norm and rate."""
    from matplotlib.figure import Figure

    rows = [json.loads(text) for text in metrics.read_text().splitlines()]
    updates, valid = ([r for r in rows if r["kind"] == kind] for kind in ("update", "valid"))
    if not updates:
        return
    figure = Figure(figsize=(12, 8), layout="constrained")
    loss, gain, cqt, gradient = figure.subplots(2, 2).flat
    for axes, title, unit in (
        (loss, "loss", "nats + error"),
        (gain, "gain over code frequencies", "nats"),
        (cqt, "CQT error", "mean square"),
        (gradient, "gradient norm", ""),
    ):
        axes.set(title=title, xlabel="update", ylabel=unit)
        for start in [r["update"] for r in rows if r["kind"] == "start"][1:]:
            axes.axvline(start, color="gray", lw=0.5, ls=":")
    _curve(loss, updates, "loss", "training")
    _curve(loss, valid, "loss", "held-out", "o-")
    for k in range(len(updates[0].get("gain", []))):
        _curve(gain, valid or updates, "gain", f"codebook {k}", "-", k)
    for key, label in (
        ("cqt_error", "model"),
        ("cqt_mean_error", "mean of each bin"),
        ("cqt_line_error", "line across the mask"),
    ):
        _curve(cqt, valid or updates, key, label)
    _curve(gradient, updates, "grad_norm", "before clipping")
    for axes in (loss, gain, cqt, gradient):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    attempt = picture.with_name(f".{picture.name}")
    figure.savefig(attempt, format="png", dpi=100)
    attempt.replace(picture)


def _curve(axes: Any, rows: list[dict], key: str, label: str, style: str = "-", k: int | None = None) -> None:
    points = [(r["update"], r[key] if k is None else r[key][k]) for r in rows if r.get(key) is not None]
    points = [(x, y) for x, y in points if y is not None]
    if points:
        axes.plot(*zip(*points, strict=True), style, label=label, lw=1, ms=3)
