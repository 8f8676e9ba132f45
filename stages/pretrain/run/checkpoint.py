"""Checkpoints: a folder of plain tensors by name, the same for every ZeRO stage and number of ranks.

    u00001000/model.safetensors      fp32 weights
              optimizer.safetensors  exp_avg.NAME and exp_avg_sq.NAME
              rng.safetensors        each rank's generators
              state.json             last: the place in the data, counters, sha256 of the files above
    latest                           the newest folder's name, written after it

Rank 0 copies the tensors to host memory, then a thread writes while training goes on. Locally a folder is
finished under an attempt's name and renamed; on S3 `state.json` is the object that makes it complete.
"""

import hashlib
import json
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from stages.pretrain.run.engine import MOMENTS, Engine
from stages.pretrain.run.world import World
from stages.shards.storage import ATTEMPT, Storage, fsync

FILES = ("model", "optimizer", "rng")


class Checkpoints:
    """Writes, finds and reads checkpoints; every rank calls `save`, `restore` and `finish`."""

    def __init__(self, place: str, keep: int, world: World):
        self.storage, self.keep, self.world = Storage(place), keep, world
        self._pool, self._writing = ThreadPoolExecutor(1, "checkpoint"), None

    def save(self, engine: Engine, state: dict[str, Any], wait: bool = False) -> str:
        """Begin a checkpoint of this moment; `state` is plain data with `update`. Returns its name."""
        name = f"u{state['update']:08d}"
        tensors = engine.gathered()
        rngs = self.world.gather(_generators(self.world))
        if self.world.is_rank_0:
            self.finish()
            moments = {n: tensors.pop(n) for n in list(tensors) if n.partition(".")[0] in MOMENTS}
            rng = {f"{kind}.{rank}": tensor for rank, own in enumerate(rngs) for kind, tensor in own.items()}
            state = state | {"steps": engine.steps, "scale": engine.scale.to_json(), "world": self.world.size}
            parts = {"model": tensors, "optimizer": moments, "rng": rng}
            self._writing = self._pool.submit(self._write, name, parts, state)
            if wait:
                self.finish()
        return name

    def finish(self) -> None:
        """Wait for the checkpoint being written; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except OSError as error:
            raise OSError(f"checkpoint at {self.storage.root} could not be written: {error}") from error

    def _write(self, name: str, parts: dict[str, dict], state: dict[str, Any]) -> None:
        local = self.storage.is_local
        folder = f"{ATTEMPT}{name}" if local else name
        # of the same update, from before a restart: not complete while it is replaced
        self.storage.delete(f"{name}/state.json")
        if local:
            shutil.rmtree(self.storage.path(folder), ignore_errors=True)
        digests = {}
        for part in FILES:
            data = save(parts[part])
            digests[f"{part}.safetensors"] = hashlib.sha256(data).hexdigest()
            self.storage.write(f"{folder}/{part}.safetensors", data)
        self.storage.write(
            f"{folder}/state.json", json.dumps(state | {"sha256": digests}, indent=1).encode() + b"\n"
        )
        if local:
            place = Path(self.storage.path(name))
            shutil.rmtree(place, ignore_errors=True)
            os.rename(self.storage.path(folder), place)
            fsync(place.parent)
        self.storage.write("latest", name.encode() + b"\n")
        if state.get("best_update") == state["update"]:
            self.storage.write("best", name.encode() + b"\n")
        self._forget()

    def _forget(self) -> None:
        names = self.names()
        best = self.storage.read("best").decode().strip() if self.storage.exists("best") else None
        for name in names[: -self.keep]:
            if name != best:
                self.storage.delete(f"{name}/state.json")  # first: without it the rest is nobody's
                for part in FILES:
                    self.storage.delete(f"{name}/{part}.safetensors")
                if self.storage.is_local:
                    Path(self.storage.path(name)).rmdir()

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first."""
        import pyarrow.fs as pafs

        found = self.storage.fs.get_file_info(
            pafs.FileSelector(self.storage.base, allow_not_found=True, recursive=True)
        )
        folders = [Path(i.path).parent.name for i in found if i.base_name == "state.json"]
        return sorted(n for n in folders if n.startswith("u"))

    def newest(self) -> str | None:
        """The newest complete checkpoint; one that died between its own name and `latest` counts."""
        names = self.world.on_rank_0(self.names)
        return names[-1] if names else None

    def restore(self, engine: Engine, name: str) -> dict[str, Any]:
        """Weights, moments, generators and loss scale of a checkpoint into `engine`; returns its state.

        Raises ValueError for a damaged file, or one of another model.
        """
        state = self.world.on_rank_0(self.state, name)
        tensors = self._read(name, "model", state) | self._read(name, "optimizer", state)
        self._check(engine, tensors, name)
        engine.restore(tensors, state["steps"])
        engine.scale.from_json(state["scale"])
        if state["world"] == self.world.size:  # otherwise the seeding of the start stands
            _set_generators(self._read(name, "rng", state), self.world)
        return state

    def state(self, name: str) -> dict[str, Any]:
        try:
            return json.loads(self.storage.read(f"{name}/state.json"))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"checkpoint {self.storage.path(name)}/state.json: {error}; remove the folder {name} to go "
                "on from the one before"
            ) from None

    def _read(self, name: str, part: str, state: dict[str, Any]) -> dict[str, torch.Tensor]:
        file = f"{name}/{part}.safetensors"
        try:
            data = self.storage.read(file)
            if hashlib.sha256(data).hexdigest() != state["sha256"][f"{part}.safetensors"]:
                raise ValueError("its sha256 is not the one noted in state.json")
            return load(data)
        except (ValueError, OSError, SafetensorError) as error:
            raise ValueError(
                f"checkpoint {self.storage.path(file)}: {error}; remove the folder {name} to go on "
                f"from the one before"
            ) from None

    def _check(self, engine: Engine, tensors: dict[str, torch.Tensor], name: str) -> None:
        own = {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in engine.model.named_parameters()}
        for n, shape in own.items():
            seen = tuple(tensors[n].shape) if n in tensors else None
            if seen != shape:
                raise ValueError(
                    f"checkpoint {self.storage.path(name)}: {n} is {seen}, this model's is {shape}: "
                    f"the model changed"
                )


def _generators(world: World) -> dict[str, torch.Tensor]:
    own = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(world.device)
    return own


def _set_generators(rng: dict[str, torch.Tensor], world: World) -> None:
    torch.set_rng_state(rng[f"cpu.{world.rank}"])
    if world.device.type == "cuda" and f"cuda.{world.rank}" in rng:
        torch.cuda.set_rng_state(rng[f"cuda.{world.rank}"], world.device)


def seed_generators(seed: int, update: int, world: World) -> None:
    """Seed this process's generators once, when it starts: dropout differs between ranks and repeats between
    runs."""
    value = int(np.random.SeedSequence([seed, update, world.rank]).generate_state(1)[0])
    torch.manual_seed(value)
    random.seed(value)
