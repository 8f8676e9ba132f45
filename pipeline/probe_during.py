"""`overtone probe RUN --during`: every checkpoint of a run, and its scores drawn beside the loss."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

from stages.evaluate.probe import encoders, table
from stages.evaluate.probe.encoders import Encoder
from stages.evaluate.probe.protocol import Result
from stages.evaluate.run import open_run
from stages.shards.storage import Storage


def checkpoints(places: Sequence[str], device: str) -> list[Encoder]:
    """The untrained model, then one encoder a checkpoint, named by its update."""
    if len(places) != 1 or not (Path(places[0]) / "config.yaml").exists():
        raise ValueError(f"--during: {' '.join(places)} is not one training RUN")
    settings = open_run(places[0]).config.get("checkpoints") or {}
    at = settings.get("at") or str(Path(places[0]) / "checkpoints")
    names = sorted(name for name in Storage(at).names("") if re.fullmatch(r"u\d+", name))
    if not names:
        raise ValueError(f"--during: {at} holds no checkpoint yet")
    found = [encoders.opened(places[0], name, device, f"update {int(name[1:])}") for name in names]
    return [found[0][1], *(encoder for encoder, _ in found)]


def draw(results: Sequence[Result], run: Path, out: Storage) -> None:
    """during.png: the linear probe's score of each task against updates, and the held-out loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (scores, losses) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 8), height_ratios=(2, 1))
    for name, rows in table.best(results).items():
        points = sorted(
            (_update(encoder), row) for encoder, row in rows.items() if _update(encoder) is not None
        )
        scores.errorbar(
            [update for update, _ in points],
            [row.score for _, row in points],
            [[row.score - row.low for _, row in points], [row.high - row.score for _, row in points]],
            label=name,
            capsize=2,
        )
    scores.set_ylabel("linear probe, best layer")
    scores.legend()
    metrics = [row for row in open_run(run).metrics if "loss" in row and "update" in row]
    for kind, label in (("update", "training"), ("valid", "held out")):
        own = [(row["update"], row["loss"]) for row in metrics if row.get("kind") == kind]
        losses.plot(*zip(*own, strict=True) if own else ([], []), label=label)
    losses.set(xlabel="update", ylabel="loss")
    losses.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    out.write("during.png", picture.getvalue())


def _update(encoder: str) -> int | None:
    if encoder == encoders.UNTRAINED:
        return 0
    return int(encoder.removeprefix("update ")) if encoder.startswith("update ") else None
