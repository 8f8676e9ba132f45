"""Checkpoints: a folder of plain tensors by name, the same for every ZeRO stage and number of ranks.

    u00001000/model.safetensors      fp32 weights
              optimizer.safetensors  exp_avg.NAME and exp_avg_sq.NAME
              rng.safetensors        each rank's generators
              state.json             last: the place in the data, counters, sha256 of the files above
    latest                           the newest folder's name, written after it

A thread of rank 0 writes while training goes on. Locally a folder is finished under an attempt's name and
renamed; on S3 `state.json` is the object that makes it complete.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from stages.pretrain.run.engine import MOMENTS, Engine
from stages.pretrain.run.world import World
from stages.shards.storage import ATTEMPT, Storage, fsync

FILES = ("model", "optimizer", "rng")


class Checkpoints:
    """Every rank calls `save`, `restore` and `finish`."""

    def __init__(self, place: str, keep: int, world: World):
        self.storage, self.keep, self.world = Storage(place), keep, world
        self._pool, self._writing = ThreadPoolExecutor(1, "checkpoint"), None

    def save(self, engine: Engine, state: dict[str, Any], wait: bool = False) -> str:
        """Begin a checkpoint of this moment; `state` is plain data with `update`. Returns its name."""
        name = f"u{state['update']:08d}"
        tensors = engine.gathered()
        own = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.world.device)
        rngs = self.world.gather(own)
        if self.world.is_rank_0:
            self.finish()
            moments = {n: tensors.pop(n) for n in list(tensors) if n.partition(".")[0] in MOMENTS}
            rng = {f"{kind}.{rank}": tensor for rank, own in enumerate(rngs) for kind, tensor in own.items()}
            parts = dict(zip(FILES, (tensors, moments, rng), strict=True))
            facts = {"steps": engine.steps, "scale": engine.loss_scale.to_json(), "world": self.world.size}
            self._writing = self._pool.submit(self._write, name, parts, state | facts)
            if wait:
                self.finish()
        return name

    def finish(self) -> None:
        """OSError when the one being written failed."""
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except OSError as error:
            raise OSError(f"checkpoint at {self.storage.root} could not be written: {error}") from error

    def _write(self, name: str, parts: dict[str, dict], state: dict[str, Any]) -> None:
        storage = self.storage
        folder = f"{ATTEMPT}{name}" if storage.is_local else name
        storage.delete(f"{name}/state.json")  # of the same update, from before a restart
        if storage.is_local:
            shutil.rmtree(storage.path(folder), ignore_errors=True)
        digests = {}
        for part, tensors in parts.items():
            data, file = save(tensors), f"{part}.safetensors"
            digests[file] = hashlib.sha256(data).hexdigest()
            storage.write(f"{folder}/{file}", data)
        text = json.dumps(state | {"sha256": digests}, indent=1) + "\n"
        storage.write(f"{folder}/state.json", text.encode())
        if storage.is_local:
            place = storage.local(name)
            shutil.rmtree(place, ignore_errors=True)
            os.rename(storage.path(folder), place)
            fsync(place.parent)
        line = f"{name}\n".encode()
        storage.write("latest", line)
        if state.get("best_update") == state["update"]:
            storage.write("best", line)
        self._delete_old()

    def _delete_old(self) -> None:
        storage = self.storage
        best = storage.read("best").decode().strip() if storage.exists("best") else None
        for name in self.names()[: -self.keep]:
            if name != best:
                storage.delete(f"{name}/state.json")  # first: without it the rest does not count
                for part in FILES:
                    storage.delete(f"{name}/{part}.safetensors")
                if storage.is_local:
                    storage.local(name).rmdir()

    def names(self) -> list[str]:
        selector = pafs.FileSelector(self.storage.base, allow_not_found=True, recursive=True)
        files = self.storage.fs.get_file_info(selector)
        folders = [Path(file.path).parent.name for file in files if file.base_name == "state.json"]
        return sorted(name for name in folders if name.startswith("u"))

    def newest(self) -> str | None:
        """Whatever `latest` names."""
        names = self.world.on_rank_0(self.names)
        return names[-1] if names else None

    def restore(self, engine: Engine, name: str) -> dict[str, Any]:
        """Into `engine` and this process's generators; returns its state. ValueError: a damaged file, or
        another model's."""
        state, world = self.state(name), self.world
        tensors = self._read(name, "model", state) | self._read(name, "optimizer", state)
        for n, parameter in engine.model.named_parameters():
            own = tuple(getattr(parameter, "ds_shape", parameter.shape))
            seen = tuple(tensors[n].shape) if n in tensors else None
            if seen != own:
                raise ValueError(
                    f"checkpoint {self.storage.path(name)}: {n} is {seen}, this model's is {own}: the model "
                    "changed"
                )
        engine.restore(tensors, state["steps"])
        engine.loss_scale.from_json(state["scale"])
        if state["world"] == world.size:  # otherwise the generators stay as they were seeded
            rng = self._read(name, "rng", state)
            torch.set_rng_state(rng[f"cpu.{world.rank}"])
            if world.device.type == "cuda" and f"cuda.{world.rank}" in rng:
                torch.cuda.set_rng_state(rng[f"cuda.{world.rank}"], world.device)
        return state

    def state(self, name: str) -> dict[str, Any]:
        """What `save` was given, on every rank. ValueError when it cannot be read."""
        return self.world.on_rank_0(self._parsed, name, "state.json", json.loads)

    def _read(self, name: str, part: str, state: dict[str, Any]) -> dict[str, torch.Tensor]:
        file = f"{part}.safetensors"

        def parse(data: bytes) -> dict[str, torch.Tensor]:
            if hashlib.sha256(data).hexdigest() != state["sha256"][file]:
                raise ValueError("its sha256 is not the one noted in state.json")
            return load(data)

        return self._parsed(name, file, parse)

    def _parsed(self, name: str, file: str, parse: Callable[[bytes], dict]) -> dict:
        try:
            return parse(self.storage.read(f"{name}/{file}"))
        except (ValueError, OSError, SafetensorError) as error:
            raise ValueError(
                f"checkpoint {self.storage.path(name)}/{file}: {error}; remove the folder {name} to go on "
                "from the one before"
            ) from None


def seed_generators(seed: int, update: int, world: World) -> None:
    """Once, when a process starts: dropout differs between ranks and repeats between runs."""
    value = int(np.random.SeedSequence([seed, update, world.rank]).generate_state(1)[0])
    torch.manual_seed(value)
    random.seed(value)
