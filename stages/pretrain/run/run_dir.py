"""RUN, a training run's folder (docs/layout.md)."""

import fcntl
import json
import math
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
from stages.shards.storage import Storage

LOCK_S = 10.0  # a killed run's ranks may take so long to die


class RunDir:
    """Made by every rank; only rank 0 writes."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.path = Path(config.run.dir).absolute() / config.run.name
        self._storage = Storage(self.path, standing=True)
        world.on_rank_0(self._open)
        self._check_visible()

    def _open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "run.lock", "a+")  # noqa: SIM115 - held until the process ends
        except OSError as error:
            raise ValueError(f"run.dir: RUN {self.path} cannot be written: {error.strerror}") from None
        lock, deadline = self._lock, time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
            if time.monotonic() >= deadline:
                lock.seek(0)
                raise ValueError(
                    f"another training run ({lock.read().strip() or 'unknown'}) works on {self.path}: wait "
                    "for it, stop it, or choose another run.name"
                )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()

    def _check_visible(self) -> None:
        world = self.world
        probe = self.path / world.broadcast(f".probe-{uuid.uuid4().hex}")
        if world.is_rank_0:
            probe.write_text("seen")
        world.barrier()
        seen = world.gather((socket.gethostname(), probe.exists()))
        if world.is_rank_0:
            probe.unlink()
        if blind := [host for host, sees in seen if not sees]:
            raise ValueError(
                f"run.dir: RUN {self.path} is not visible on {blind[0]}: it must be on storage that every "
                "rank shares"
            )

    def previous(self) -> dict[str, Any] | None:
        """data.json of an earlier start; None for a new run. ValueError if the run was another one."""
        path = self.path / "data.json"
        try:
            before = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read ({error}): restore it, or choose another run.name"
            ) from None
        now = json.loads(json.dumps(identity(self.config)))
        check_same(before["started_with"], now, self.config.resume.allow, str(self.path))
        return before

    def write_start(self, data: dict[str, Any]) -> None:
        """config.yaml and data.json, each whole or not at all."""
        if self.world.is_rank_0:
            plain = json.loads(json.dumps(asdict(self.config)))
            self._storage.write("config.yaml", yaml.safe_dump(plain, sort_keys=False).encode())
            data = json.dumps(data | {"started_with": identity(self.config)}, indent=1)
            self._storage.write("data.json", f"{data}\n".encode())

    def cut_metrics(self, update: int) -> None:
        """Drop what was measured after `update` updates, and a line cut short."""
        path = self.path / "metrics.jsonl"
        if self.world.is_rank_0 and path.exists():
            lines = [line for line in path.read_text().splitlines() if _keeps(line, update)]
            self._storage.write(path.name, "".join(f"{line}\n" for line in lines).encode())

    def log(self, kind: str, **values: Any) -> None:
        """A line of metrics.jsonl; numbers that are not finite become null."""
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
        return float(f"{value:.13g}") if math.isfinite(value) else None  # a time keeps its milliseconds
    return value
