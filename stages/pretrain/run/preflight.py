"""What the device can do, measured."""

import time

import psutil
import torch
from torch import nn

from stages.pretrain.data.batch import Batch
from stages.pretrain.model.layers import autocast
from stages.pretrain.run.world import World
from stages.signal.rates import RATE_HZ

SECONDS = 0.5


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: the best of the repeats within half a second."""
    cuda = device.type == "cuda"
    n = 8192 if cuda else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    took, began = [], time.monotonic()
    while time.monotonic() - began < SECONDS or not took:
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - start)
    return 2 * n**3 / min(took)


def check_memory(model: nn.Module, batch: Batch, dtype: torch.dtype, world: World, copies: float) -> None:
    """Forward and backward of a full micro-batch; its gradients are dropped. `copies`: fp32 copies of the
    weights that the optimiser will add. Raises ValueError that names what to lower."""
    extra = int(copies * 4 * sum(p.numel() for p in model.parameters()))
    device, cpu = world.device, world.device.type == "cpu"
    try:
        reserved = None if cpu else torch.empty(extra, dtype=torch.uint8, device=device)
        with autocast(device.type, dtype):
            loss = model(batch.wave_BN, batch.mask_BT, batch.codes, batch.cqt_BLF)["loss"]
        loss.backward()
        del reserved
        if cpu and (free := psutil.virtual_memory().available) < extra:
            raise torch.OutOfMemoryError(
                f"the optimiser needs {extra / 2**30:.1f} GiB more, {free / 2**30:.1f} are free"
            )
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
            raise
        clips, samples = batch.wave_BN.shape
        raise ValueError(
            f"engine.micro_batch is {clips}: {clips} crops of {samples / RATE_HZ:.1f} s do not fit on "
            f"{device} ({str(error).splitlines()[0][:200]}): lower engine.micro_batch (the global batch "
            "stays the same), set model.activation_checkpointing=true, or raise engine.zero_stage"
        ) from None
    finally:
        model.zero_grad(set_to_none=True)
