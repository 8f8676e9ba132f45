"""Training: labelled shards become a model, on Ray. What a rank does stands in stages/pretrain/loop.py."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from stages.pretrain.config import Config
from stages.pretrain.run.display import duration
from stages.shards.storage import Storage

DONE, INTERRUPTED = 0, 130


def pretrain(config: Config) -> int:
    """Train until the last update; the same command goes on after any interruption. Ctrl-C writes a
    checkpoint first.

    Returns the exit code: 0 when the last update is done, 130 when it was stopped before.
    Raises ValueError for what a user can mend, within seconds where it can be known.
    """
    from cluster import trainer
    from cluster.session import preflight, session

    config = absolute(config)
    check(config)
    preflight(0)
    run = Path(config.run.dir) / config.run.name
    view = View(run, config)
    with session() as _, view, _stopping(run, view):
        outcome = trainer.train(config, view.look, lambda: newest(config), view.say)
    view.say(f"{run}: metrics.jsonl, curves.png, checkpoints/; `overtone status {run}` says where it stands")
    return DONE if outcome == "done" else INTERRUPTED


def absolute(config: Config) -> Config:
    """Paths as every rank can use them, wherever Ray starts it."""

    def whole(path: str | None) -> str | None:
        return path if path is None or "://" in path else os.path.abspath(path)

    return replace(
        config,
        run=replace(config.run, dir=whole(config.run.dir), init_from=whole(config.run.init_from)),
        data=replace(
            config.data, corpora=tuple(map(whole, config.data.corpora)), cache=whole(config.data.cache)
        ),
        checkpoints=replace(config.checkpoints, at=whole(config.checkpoints.at)),
        engine=replace(config.engine, deepspeed=whole(config.engine.deepspeed)),
    )


def check(config: Config) -> None:
    """What can be known before Ray is started; raises ValueError."""
    for root in config.data.corpora:
        out = Storage(root)
        if not out.exists("plan.parquet"):
            raise ValueError(
                f"data.corpora: {root} holds no plan.parquet: it is not the OUT of `overtone labels`, "
                f"or labelling has not begun there"
            )
    if config.engine.deepspeed:
        from stages.pretrain.run.engine import deepspeed_config

        deepspeed_config(config.engine, config.optim, False, 1)


def newest(config: Config) -> str | None:
    """Name of the run's newest checkpoint, as `latest` says."""
    place = Storage(config.checkpoints.at or f"{Path(config.run.dir) / config.run.name}/checkpoints")
    return place.read("latest").decode().strip() if place.exists("latest") else None


class _stopping:  # noqa: N801 - used as a context
    """Ctrl-C and SIGTERM ask the ranks to stop at the next boundary; a second Ctrl-C ends at once."""

    def __init__(self, run: Path, view: "View"):
        self.run, self.view, self.asked = run, view, False

    def __enter__(self) -> None:
        self._before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.asked or not self.run.is_dir():
            raise KeyboardInterrupt
        self.asked = True
        (self.run / "stop").touch()
        self.view.say("stopping after this update, with a checkpoint; once more Ctrl-C to stop at once")


class View:
    """Follows RUN/run.log and RUN/metrics.jsonl: lines as they come, and a bar at the foot of a terminal."""

    def __init__(self, run: Path, config: Config):
        self.console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._log, self._metrics = Tail(run / "run.log"), Tail(run / "metrics.jsonl")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        )
        self._bar = Progress(
            *columns, console=self.console, disable=not (config.watch.live and self.console.is_terminal)
        )
        self._task = self._bar.add_task("starting", total=config.optim.updates)

    def __enter__(self) -> "View":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self._bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def look(self) -> None:
        for line in self._log.lines():
            self.say(line)
        for line in self._metrics.lines():
            row = json.loads(line)
            if row["kind"] == "update":
                loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
                text = f"loss {loss}  {row['audio_s_per_s']:.1f} audio-s/s  left {duration(row['left_s'])}"
                self._bar.update(self._task, completed=row["update"], description=text)


class Tail:
    """New whole lines of a file that grows, from where it ends now; another file of its name is followed from
    its end."""

    def __init__(self, path: Path):
        self.path, self._rest = path, ""
        self._file, self._place = self._end()

    def _end(self) -> tuple[int, int]:
        try:
            seen = self.path.stat()
        except FileNotFoundError:
            return 0, 0
        return seen.st_ino, seen.st_size

    def lines(self) -> list[str]:
        file, size = self._end()
        if not self._file:
            self._file = file
        # a run that goes on cuts its metrics by replacing the file
        if file != self._file or size < self._place:
            self._file, self._place, self._rest = file, size, ""
            return []
        if size == self._place:
            return []
        with open(self.path) as text:
            text.seek(self._place)
            new = self._rest + text.read()
            self._place = text.tell()
        *whole, self._rest = new.split("\n")
        return whole
