"""Labelled shards become a model, on Ray. What a rank does is in stages/pretrain/loop.py."""

import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress

from pipeline.doctor import PACKAGES, remedy
from stages.pretrain.config import Config
from stages.pretrain.run.display import duration
from stages.shards.storage import Storage


def pretrain(config: Config) -> int:
    """The same command goes on after any interruption. Ctrl-C writes a checkpoint; the exit code is then 130.
    ValueError for a mistake of the user, within seconds where it can be known."""
    from cluster import trainer
    from cluster.session import preflight, session

    config = absolute(config)
    check(config)
    preflight(0)
    run = Path(config.run.dir) / config.run.name
    view = View(run, config)
    with session(), view.bar, _stopping(run, view.say):
        try:
            outcome = trainer.train(config, view.look, lambda: newest(config), view.say)
        finally:
            view.look()
    view.say(f"{run}: metrics.jsonl, curves.png, checkpoints/; `overtone status {run}` shows how far it is")
    return 0 if outcome == "done" else 130


def absolute(config: Config) -> Config:
    """Paths as every rank can use them, wherever Ray starts it."""

    def whole(path: str | None) -> str | None:
        return path if path is None or "://" in path else os.path.abspath(path)

    run, data = config.run, config.data
    return replace(
        config,
        run=replace(run, dir=whole(run.dir), init_from=whole(run.init_from)),
        data=replace(data, corpora=tuple(map(whole, data.corpora)), cache=whole(data.cache)),
        checkpoints=replace(config.checkpoints, at=whole(config.checkpoints.at)),
        engine=replace(config.engine, deepspeed=whole(config.engine.deepspeed)),
    )


def check(config: Config) -> None:
    for name, (extra, _) in PACKAGES.items():
        needed = extra == "[train]" and (name != "tensorboard" or config.watch.tensorboard)
        if needed and importlib.util.find_spec(name) is None:
            raise ValueError(remedy(name))
    for root in config.data.corpora:
        if not Storage(root).exists("plan.parquet"):
            raise ValueError(
                f"data.corpora: {root} holds no plan.parquet: it is not the OUT of `overtone labels`, "
                f"or labelling has not begun there"
            )
    if config.engine.deepspeed:
        from stages.pretrain.run.engine import deepspeed_config

        deepspeed_config(config.engine, config.optim, False, 1)


def newest(config: Config) -> str | None:
    place = Storage(config.checkpoints.at or f"{Path(config.run.dir) / config.run.name}/checkpoints")
    return place.read("latest").decode().strip() if place.exists("latest") else None


@contextlib.contextmanager
def _stopping(run: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the ranks to stop at the next boundary; a second Ctrl-C ends at once."""
    requested = False

    def stop(*_: object) -> None:
        nonlocal requested
        if requested or not run.is_dir():
            raise KeyboardInterrupt
        requested = True
        (run / "stop").touch()
        say("stopping after this update, with a checkpoint; once more Ctrl-C to stop at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class View:
    """New lines of RUN/run.log, and a bar at the foot of a terminal."""

    def __init__(self, run: Path, config: Config):
        self.console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._log, self._metrics = Tail(run / "run.log"), Tail(run / "metrics.jsonl")
        hidden = not (config.watch.live and self.console.is_terminal)
        columns = ("{task.description}", BarColumn(), "{task.completed:.0f}/{task.total:.0f}")
        self.bar = Progress(*columns, console=self.console, disable=hidden)
        self._task = self.bar.add_task("starting", total=config.optim.updates)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def look(self) -> None:
        for line in self._log.lines():
            self.say(line)
        for row in map(json.loads, self._metrics.lines()):
            if row["kind"] == "update":
                loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
                text = f"loss {loss}  {row['audio_s_per_s']:.1f} audio-s/s  left {duration(row['left_s'])}"
                self.bar.update(self._task, completed=row["update"], description=text)


class Tail:
    """New whole lines of a growing file, from its present end, or from that of a file that replaces it."""

    def __init__(self, path: Path):
        self.path, self._rest = path, ""
        self._file, self._place = self._end()

    def _end(self) -> tuple[int, int]:
        with contextlib.suppress(FileNotFoundError):
            seen = self.path.stat()
            return seen.st_ino, seen.st_size
        return 0, 0

    def lines(self) -> list[str]:
        file, size = self._end()
        self._file = self._file or file
        # a run that goes on cuts its metrics by replacing the file
        if file != self._file or size < self._place:
            self._file, self._place, self._rest = file, size, ""
        if size == self._place:
            return []
        with open(self.path) as text:
            text.seek(self._place)
            *whole, self._rest = (self._rest + text.read()).split("\n")
            self._place = text.tell()
        return whole
