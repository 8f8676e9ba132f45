"""The ranks of one training run: who am I, on which device, and the few things all ranks must agree on.

Under torchrun, the deepspeed launcher or our Ray trainer the usual variables are set (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT); without them there is one rank.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


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

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank; gloo and nccl add in rank order for a fixed world."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Whether any rank says so, for each flag."""
        return [bool(v) for v in self.sum(torch.tensor([float(f) for f in flags])).tolist()]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank. What it raised is raised everywhere: see `lead`."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_rank_0(self, action: Any, *arguments: Any) -> Any:
        """Run `action` on rank 0 and hand its value to all; its ValueError or OSError is raised on all
        ranks."""
        outcome: tuple[str, Any] = ("value", None)
        if self.is_rank_0:
            try:
                outcome = ("value", action(*arguments))
            except (ValueError, OSError) as error:
                outcome = ("error", error)
        kind, value = self.broadcast(outcome)
        if kind == "error":
            raise value
        return value

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(timeout_s: float) -> Iterator[World]:
    """Join the process group named by the environment; leave it at the end."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = (
        torch.device("cuda", local % torch.cuda.device_count())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield World(rank, size, local, device, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    finally:
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
