"""Run a function of the tests on several ranks, each a process of its own: `python -m tests.ranks
MODULE:FUNCTION FOLDER`."""

import faulthandler
import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    own = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
        "DS_ACCELERATOR": "cpu",
    }
    return os.environ | {name: str(value) for name, value in own.items()}


def run(function: str, folder: Path, size: int) -> None:
    """Raises AssertionError with the ranks' output unless all end well."""
    from stages.pretrain.run.world import free_port

    port = free_port()
    command = [sys.executable, "-m", "tests.ranks", function, str(folder)]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ranks = [subprocess.Popen(command, env=environment(r, size, port), **options) for r in range(size)]
    outputs = [rank.communicate(timeout=500)[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "\n".join(outputs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    module, _, name = sys.argv[1].partition(":")
    faulthandler.enable()
    getattr(importlib.import_module(module), name)(Path(sys.argv[2]))
    sys.stdout.flush()
    # Not by the interpreter's end: once in some hundred runs a thread of torch's was still alive there, and
    # C++ ended a rank whose results were all written ("terminate called without an active exception").
    os._exit(0)
