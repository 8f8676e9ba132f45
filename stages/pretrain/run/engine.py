"""DeepSpeed ZeRO around the model: what an update does on this rank.

Everything kept is fp32; `bf16` and `fp16` are autocast's. So stages 0 to 3 differ in where values are stored
only."""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.config import require
from stages.pretrain.data.batch import Batch
from stages.pretrain.model.layers import autocast
from stages.pretrain.run.loss_scale import LossScale
from stages.pretrain.run.optimiser import Adam
from stages.pretrain.run.settings import EngineSettings, Optim
from stages.pretrain.run.world import World

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MOMENTS = ("exp_avg", "exp_avg_sq")


class _Autocast(nn.Module):
    """DeepSpeed switches off an autocast that surrounds its engine."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, device: str, **inputs: Any) -> dict[str, Tensor]:
        with autocast(device, self.dtype):
            return self.model(**inputs)


class Engine:
    """An update is `micro_batches` times `forward` and `backward`, then `step`, on every rank."""

    def __init__(
        self, model: nn.Module, settings: EngineSettings, optim: Optim, world: World, micro_batches: int
    ):
        self.model, self.optim, self.world, self.micro_batches = model, optim, world, micro_batches
        self.stage, self.dtype = settings.zero_stage, DTYPES[settings.precision]
        self.loss_scale = LossScale(settings.precision == "fp16")
        model.to(world.device)
        if settings.compile:
            compiler = os.environ.get("CXX", "g++")  # torch's inductor looks there
            remedy = f"needs a C++ compiler, and {compiler} is not on PATH: install one, or set it to false"
            require(shutil.which(compiler) is not None, "engine.compile", True, remedy)
            model.compile()
        self.adam, cast = Adam(model.named_parameters(), optim), _Autocast(model, self.dtype)
        self._deepspeed = _initialize(cast, self.adam, settings, optim, world, micro_batches)
        self._accumulated = 0  # micro-batches whose gradients wait for the step
        self._create_moments()

    def forward(self, batch: Batch, keep_layers: tuple, codebooks: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        """One micro-batch's loss with its graph, and all of `Mert.forward`, detached float64."""
        self._deepspeed.train()
        inputs = {
            name: getattr(batch, name) for name in ("wave_BN", "mask_BT", "codes", "cqt_BLF", "masked_BM")
        }
        inputs |= {"keep_layers": keep_layers, "codebooks": codebooks}
        terms = self._deepspeed(self.world.device.type, **inputs)
        return terms["loss"], {name: value.detach().double() for name, value in terms.items()}

    def backward(self, loss: Tensor, frames: int) -> None:
        """Add a micro-batch's gradients of the mean over `frames`, those masked in the global batch."""
        loss = loss * (self.world.size * self.micro_batches / frames)  # DeepSpeed averages over both
        if self.stage == 0:
            loss = loss * self.loss_scale.value
        elif self.loss_scale.enabled:  # ZeRO multiplies by its own
            self._deepspeed.optimizer.override_loss_scale(self.loss_scale.value)
        self._deepspeed.backward(loss)
        self._accumulated += 1
        if self._accumulated < self.micro_batches:
            self._deepspeed.step()

    def step(self, lr: float, skip: bool) -> tuple[float, bool]:
        """Clip and apply the gradients. Returns their norm before, and True; (inf, False) when they are not
        finite. `skip`: they were made so, it is no overflow of fp16."""
        assert self._accumulated == self.micro_batches, "a loader gave too few micro-batches"
        self._accumulated = 0
        self.adam.set_lr(lr)
        if self.stage == 0:
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_div_(grads, self.loss_scale.value)
            norm = nn.utils.get_total_norm(grads)
            self.adam.skip = not math.isfinite(norm)
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.optim.clip_norm, norm)
        self._deepspeed.step()
        zero = self._deepspeed.optimizer
        applied = not (zero.overflow if self.stage else self.adam.skip)
        self.loss_scale.update(applied, skip)
        if self.stage == 3:  # or a layer that is left out keeps its gradient, in offloaded copies too
            zero.grad_partitions_flat_buffer.zero_()
            for flat in zero.fp32_partitioned_groups_flat:
                if flat.grad is not None:
                    flat.grad.zero_()
        if not applied:
            return math.inf, False
        return float(self._deepspeed.get_global_grad_norm() if self.stage else norm), True

    def _whole(self, parameters: list[nn.Parameter], **options: Any) -> contextlib.AbstractContextManager:
        """ZeRO 3 splits each weight over the ranks."""
        if self.stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, **options)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model in eval mode with whole weights, in the run's precision, without gradients."""
        precision = autocast(self.world.device.type, self.dtype)
        self._deepspeed.eval()
        try:
            with self._whole(list(self.model.parameters())), torch.no_grad(), precision:
                yield self.model
        finally:
            self._deepspeed.train()

    def gathered(self) -> dict[str, Tensor]:
        """Rank 0: fp32 weights by name, `exp_avg.NAME` and `exp_avg_sq.NAME`, on the CPU; others: {}."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        found = {}

        def put(name: str, value: Tensor) -> None:
            if self.world.is_rank_0:
                found[name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()

        weight = safe_get_full_fp32_param if self.stage else lambda p: p
        moment = safe_get_full_optimizer_state if self.stage else lambda p, key: self.adam.state[p][key]
        for name, parameter in self.model.named_parameters():
            put(name, weight(parameter))
            for key in MOMENTS:
                put(f"{key}.{name}", moment(parameter, key))
        for name, buffer in self.model.state_dict().items():
            if name not in found:
                put(name, buffer)
        return found

    @property
    def steps(self) -> int:
        """Updates that Adam has applied."""
        return int(next(iter(self.adam.state.values()))["step"])

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Set what `gathered` returned, on every rank; names and shapes must agree."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for state in self.adam.state.values():
            state["step"].fill_(steps)
        for name, parameter in self.model.named_parameters():
            value = tensors[name].to(self.world.device)
            if self.stage:
                safe_set_full_fp32_param(parameter, value)
            with self._whole([parameter], modifier_rank=0), torch.no_grad():
                parameter.data.copy_(value.view_as(parameter))
            for key in MOMENTS:
                value = tensors[f"{key}.{name}"].to(self.world.device)
                if self.stage:
                    safe_set_full_optimizer_state(parameter, value, key)
                else:
                    self.adam.state[parameter][key].copy_(value)

    def _create_moments(self) -> None:
        """Zeros, so that moments can be read and set before the first step. DeepSpeed would link them after
        its first group's first step, when those of other groups do not exist yet."""
        zero, flats = self._deepspeed.optimizer, self.model.parameters()
        if self.stage:
            name = "single_partition_of_fp32_groups" if self.stage < 3 else "fp32_partitioned_groups_flat"
            flats = getattr(zero, name)
        for flat in flats:
            if not self.adam.state[flat]:
                moments = {key: torch.zeros_like(flat.data) for key in MOMENTS}
                self.adam.state[flat] = {"step": torch.tensor(0.0), **moments}
        if self.stage in (1, 2):
            zero._lazy_init_hp_params_optimizer_state()


def deepspeed_config(
    settings: EngineSettings, optim: Optim, cuda: bool, micro_batches: int, overlap: bool = False
) -> dict:
    """Our settings as DeepSpeed names them, explicit where its defaults changed, and the user's JSON."""
    zero = {"stage": settings.zero_stage, "contiguous_gradients": True, "reduce_scatter": True}
    # Buckets small enough that reducing one overlaps with computing the next. With nothing to reduce,
    # DeepSpeed would still wait for the device at each.
    zero |= {"overlap_comm": overlap, "reduce_bucket_size": 50_000_000, "round_robin_gradients": False}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cuda}
    own = {
        # not used: the loss is a sum over the global batch
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        # stage 0 is clipped in `Engine.step`
        "gradient_clipping": optim.clip_norm if settings.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "prescale_gradients": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": False},  # precision is autocast's
        "fp16": {"enabled": False},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a micro-batch
    }
    if settings.deepspeed is None:
        return own
    try:
        user = json.loads(Path(settings.deepspeed).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"engine.deepspeed is {settings.deepspeed!r}: {error}") from None
    return _merged(own, user, f"engine.deepspeed {settings.deepspeed}: ")


def _merged(own: dict, user: dict, where: str) -> dict:
    merged = own | user
    for key, value in user.items():
        ours = own.get(key, value)
        if isinstance(value, dict) and isinstance(ours, dict):
            merged[key] = _merged(ours, value, f"{where}{key}.")
        elif value != ours and key != "reduce_bucket_size":  # a choice, not a part of the recipe
            raise ValueError(
                f"{where}{key} is {value!r}, but the run's configuration makes it {ours!r}: leave it out "
                "there, and set it under engine: or optim:"
            )
    return merged


def _initialize(module: nn.Module, adam: Adam, settings, optim: Optim, world: World, micro_batches: int):
    cuda = world.device.type == "cuda"
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not cuda:  # its shared-memory sums need a compiler and add in another order than gloo
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = deepspeed_config(settings, optim, cuda, micro_batches, overlap=cuda and world.size > 1)
    return deepspeed.initialize(model=module, optimizer=adam, config=config, dist_init_required=False)[0]
