"""RUN, the folder of one training run: its lock, its configuration, its pinned data, its metrics.

RUN/config.yaml  data.json  metrics.jsonl  curves.png  checkpoints/  tensorboard/  stacks/  run.lock
"""

import fcntl
import json
import os
import socket
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from stages.pretrain.config import Config, check_same, identity
from stages.pretrain.run.world import World

LOCK_S = 10.0  # a killed run's ranks may take so long to die


class RunDir:
    """Made by every rank; only rank 0 writes."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.path = Path(config.run.dir).absolute() / config.run.name
        world.on_rank_0(self._open)
        self._check_visible()

    def _open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "run.lock", "a+")  # noqa: SIM115 - held until the process ends
        except OSError as error:
            raise ValueError(f"run.dir: RUN {self.path} cannot be written: {error.strerror}") from None
        deadline = time.monotonic() + LOCK_S
        while not self._locked():
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            self._lock.seek(0)
            raise ValueError(
                f"another training run ({self._lock.read().strip() or 'unknown'}) works on {self.path}: "
                f"wait for it, stop it, or choose another run.name"
            )
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _check_visible(self) -> None:
        name = self.world.broadcast(f".probe-{uuid.uuid4().hex}" if self.world.is_rank_0 else None)
        if self.world.is_rank_0:
            (self.path / name).write_text("seen")
        self.world.barrier()
        blind = [
            host
            for host, sees in self.world.gather((socket.gethostname(), (self.path / name).exists()))
            if not sees
        ]
        self.world.barrier()
        if self.world.is_rank_0:
            (self.path / name).unlink()
        if blind:
            raise ValueError(
                f"run.dir: RUN {self.path} is not visible on {blind[0]}: it must lie on storage that "
                f"every rank shares"
            )

    def previous(self) -> dict[str, Any] | None:
        """data.json of an earlier start; None for a new run. ValueError if the run was another one."""
        try:
            before = json.loads((self.path / "data.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{self.path / 'data.json'} cannot be read ({error}): restore it, or choose another run.name"
            ) from None
        check_same(
            before["started_with"],
            json.loads(json.dumps(identity(self.config))),
            self.config.resume.allow,
            str(self.path),
        )
        return before

    def write_start(self, data: dict[str, Any]) -> None:
        """config.yaml and data.json, each whole or not at all."""
        _replace(self.path / "config.yaml", yaml.safe_dump(_plain(asdict(self.config)), sort_keys=False))
        _replace(
            self.path / "data.json",
            json.dumps(data | {"started_with": identity(self.config)}, indent=1) + "\n",
        )

    def cut_metrics(self, update: int) -> None:
        """Drop what was measured after the restored checkpoint (`update` updates were done), and half a
        line."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _keeps(line, update)]
            _replace(path, "".join(line + "\n" for line in lines))

    def log(self, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl; numbers that are not finite become null."""
        if self.world.is_rank_0:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"kind": kind, **_finite(values)}) + "\n")


def _keeps(line: str, update: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return row["kind"] in ("start", "restored", "skipped") or row.get("update", 0) <= update


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        # a time keeps its milliseconds
        return float(f"{value:.13g}") if value == value and abs(value) != float("inf") else None
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _replace(path: Path, text: str) -> None:
    attempt = path.with_name(f".{path.name}.{os.getpid()}")
    with open(attempt, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    attempt.replace(path)
