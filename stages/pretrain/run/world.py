"""The ranks of a training run, and what they agree on. torchrun, the deepspeed launcher and our Ray trainer
set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them there is one rank."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    device: torch.device
    local_size: int = 1  # ranks on this machine, this one included

    @property
    def is_rank_0(self) -> bool:
        return self.rank == 0

    def agree(self, values: dict[str, Tensor | bool]) -> "Agreed":
        """Sums over ranks in one exchange; of a flag, the ranks where it is set. gloo and nccl add in rank
        order for a fixed world. Nobody waits before the sums are read."""
        tensors = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
        near = {name: t for name, t in tensors.items() if t.device == self.device}
        far = {name: t for name, t in tensors.items() if name not in near}
        parts = [t.reshape(-1) for t in near.values()]
        if far:  # one copy, for which the host does not wait
            parts.append(torch.cat([t.reshape(-1) for t in far.values()]).to(self.device, non_blocking=True))
        flat = torch.cat(parts)
        if self.size > 1:
            dist.all_reduce(flat)
        return Agreed(flat, {name: t.shape for name, t in (near | far).items()})

    def broadcast(self, value: Any) -> Any:
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def on_rank_0(self, action: Any, *arguments: Any) -> Any:
        """The value of `action` on rank 0, its ValueError or OSError, on all ranks."""
        value = failure = None
        if self.is_rank_0:
            try:
                value = action(*arguments)
            except (ValueError, OSError) as error:
                failure = error
        value, failure = self.broadcast((value, failure))
        if failure:
            raise failure
        return value

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


class Agreed:
    """Sums over all ranks, float64 in the values' shapes: on the device at once, on the CPU by `read`."""

    def __init__(self, flat: Tensor, shapes: dict[str, torch.Size]):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        self.there = {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
        self._shapes, self._here, self._arrived = shapes, flat, None
        if flat.is_cuda:  # begins now: who reads does not wait for what the device is given after it
            self._here = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
            self._here.copy_(flat, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[str, Tensor]:
        if self._arrived is not None:
            self._arrived.synchronize()
        parts = self._here.split([shape.numel() for shape in self._shapes.values()])
        return {n: part.view(s) for (n, s), part in zip(self._shapes.items(), parts, strict=True)}


@contextmanager
def joined(timeout_s: float) -> Iterator[World]:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    if "MASTER_PORT" not in os.environ:
        alone["MASTER_PORT"] = str(free_port())
    os.environ.update(alone | os.environ)
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    options = {"timeout": timedelta(seconds=timeout_s), "device_id": device if cuda else None}
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size, **options)
    try:
        yield World(rank, size, local, device, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    finally:
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
