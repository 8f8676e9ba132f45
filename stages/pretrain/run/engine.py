"""DeepSpeed ZeRO round the model: one update of the weights from one global batch.

Weights, gradients, their sums over ranks and Adam's moments are fp32 at every stage; `bf16` and `fp16`
run the model's arithmetic under autocast. So stages 0 to 3 differ in where things lie, not in what is
computed, and one test against plain PyTorch holds for all of them.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.config import require
from stages.pretrain.data.batch import Batch
from stages.pretrain.run.loss_scale import LossScale
from stages.pretrain.run.optimiser import Adam
from stages.pretrain.run.settings import EngineSettings, Optim
from stages.pretrain.run.world import World

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Updated:
    """What one update did, the same on every rank."""

    sums: dict[str, Tensor]  # float64 sums over the global batch of what the model and the caller report
    flags: list[bool]  # True where any rank said so
    grad_norm: float  # of the whole gradient before clipping; inf when the update was skipped
    skipped: bool
    scale: float


class _Cast(nn.Module):
    """The model under autocast: DeepSpeed switches off an autocast that surrounds its engine."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, device: str, **inputs: Any) -> dict[str, Tensor]:
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(**inputs)


class Engine:
    """Wraps `model` (on the CPU or the rank's device); every rank must call every method alike."""

    def __init__(
        self, model: nn.Module, settings: EngineSettings, optim: Optim, world: World, accumulation: int
    ):
        self.model, self.settings, self.optim, self.world, self.accumulation = (
            model,
            settings,
            optim,
            world,
            accumulation,
        )
        model.to(world.device)
        if settings.compile:
            compiler = os.environ.get("CXX", "g++")  # torch's inductor looks there
            require(
                shutil.which(compiler) is not None,
                "engine.compile",
                True,
                f"needs a C++ compiler, and {compiler} is not on PATH: "
                f"install one, or set engine.compile to false",
            )
            model.compile()
        self.scale = LossScale(settings.precision == "fp16")
        self.adam = Adam(model.named_parameters(), optim)
        self._deepspeed = _initialize(
            _Cast(model, DTYPES[settings.precision]), self.adam, settings, optim, world, accumulation
        )
        self.stage = settings.zero_stage
        self._prime()

    def update(
        self,
        batches: Iterable[tuple[Batch, dict[str, Tensor]]],
        frames: int,
        rate: float,
        drawn: tuple,
        judge,
        flags=(),
    ) -> Updated:
        """One update from this rank's `accumulation` micro-batches, each with further sums to add up.

        `frames` = masked frames of the whole global batch: the loss is its sum divided by that, whatever
        the shares of ranks and micro-batches. `judge(mean_loss) -> bool` says whether to skip the update.
        """
        self.adam.set_lr(rate)
        self._begin()
        own: dict[str, Tensor] = {}
        for i, (batch, further) in enumerate(batches):
            terms = self._deepspeed(
                self.world.device.type,
                wave_BN=batch.wave_BN,
                mask_BT=batch.mask_BT,
                codes=batch.codes,
                cqt_BLF=batch.cqt_BLF,
                keep_layers=drawn[0],
                codebooks=drawn[1],
            )
            loss = terms.pop("loss")
            for name, value in {"loss": loss.detach(), **terms, **further}.items():
                own[name] = own.get(name, 0) + value.detach().double()
            loss = loss * (self.world.size * self.accumulation / frames)  # DeepSpeed averages over both
            if i == self.accumulation - 1:
                sums, agreed = _summed(own, flags, self.world)
                skip = judge(float(sums["loss"]) / frames)
                # non-finite gradients are DeepSpeed's own way to skip
                loss = loss * float("nan") if skip else loss
            self._backward(loss)
        assert i == self.accumulation - 1, "a loader gave too few micro-batches"
        norm, applied = self._step()
        scale = self.scale.value
        self.scale.update(applied, skip)
        return Updated(sums, agreed, norm, not applied, scale)

    def _backward(self, loss: Tensor) -> None:
        # ZeRO multiplies by its own
        self._deepspeed.backward(loss * self.scale.value if self.stage == 0 else loss)
        if not self._deepspeed.is_gradient_accumulation_boundary():
            self._deepspeed.step()

    def _step(self) -> tuple[float, bool]:
        if self.stage == 0:
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_div_(grads, self.scale.value)
            norm = float(nn.utils.get_total_norm(grads))
            self.adam.skip = norm != norm or norm == float("inf")
            nn.utils.clip_grads_with_norm_(
                self.model.parameters(), self.optim.clip_norm, torch.tensor(norm, device=self.world.device)
            )
            self._deepspeed.step()
            return (float("inf"), False) if self.adam.skip else (norm, True)
        self._deepspeed.step()
        overflow = bool(self._deepspeed.optimizer.overflow)
        return (float("inf"), False) if overflow else (float(self._deepspeed.get_global_grad_norm()), True)

    def _begin(self) -> None:
        self._deepspeed.train()
        if self.stage and self.settings.precision == "fp16":
            self._deepspeed.optimizer.override_loss_scale(self.scale.value)
        # a layer that is left out would keep its last gradient there, and in the offloaded copies
        if self.stage == 3:
            self._deepspeed.optimizer.grad_partitions_flat_buffer.zero_()
            for flat in self._deepspeed.optimizer.fp32_partitioned_groups_flat:
                if flat.grad is not None:
                    flat.grad.zero_()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model in eval mode with whole weights, under the run's precision, without gradients."""
        import deepspeed

        whole = (
            deepspeed.zero.GatheredParameters(list(self.model.parameters()))
            if self.stage == 3
            else contextlib.nullcontext()
        )
        dtype = DTYPES[self.settings.precision]
        self._deepspeed.eval()
        try:
            with (
                whole,
                torch.no_grad(),
                torch.autocast(self.world.device.type, dtype, enabled=dtype != torch.float32),
            ):
                yield self.model
        finally:
            self._deepspeed.train()

    def gathered(self) -> dict[str, Tensor]:
        """Rank 0: fp32 weights by name, `exp_avg.NAME` and `exp_avg_sq.NAME`, on the CPU; others: {}.

        The same at every stage and world size: what makes a checkpoint independent of both.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        found: dict[str, Tensor] = {}

        def put(name: str, value: Tensor) -> None:
            if self.world.is_rank_0:
                found[name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()

        for name, parameter in self.model.named_parameters():
            if self.stage == 0:
                put(name, parameter)
                for key in MOMENTS:
                    put(f"{key}.{name}", self.adam.state[parameter][key])
                continue
            put(name, safe_get_full_fp32_param(parameter))
            for key in MOMENTS:
                put(f"{key}.{name}", safe_get_full_optimizer_state(parameter, key))
        for name, buffer in self.model.state_dict().items():
            if name not in found:
                put(name, buffer)
        return found

    @property
    def steps(self) -> int:
        """Updates that Adam has applied: its bias correction depends on it."""
        return int(next(iter(self.adam.state.values()))["step"])

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Take over what `gathered` gave; every rank holds all `tensors`. Strict: names and shapes must
        agree."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for state in self.adam.state.values():
            state["step"].fill_(steps)
        for name, parameter in self.model.named_parameters():
            value = tensors[name].to(self.world.device)
            if self.stage:
                safe_set_full_fp32_param(parameter, value)
            gathered = (
                deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
                if self.stage == 3
                else contextlib.nullcontext()
            )
            with gathered, torch.no_grad():
                parameter.data.copy_(value.view_as(parameter))
            for key in MOMENTS:
                value = tensors[f"{key}.{name}"].to(self.world.device)
                if self.stage:
                    safe_set_full_optimizer_state(parameter, value, key)
                else:
                    self.adam.state[parameter][key].copy_(value)

    def _prime(self) -> None:
        """Make Adam's moments exist, as zeros, before its first step: they can then be read and set.

        DeepSpeed would link them after its first group's first step, when those of other groups do not exist
        yet."""
        zero = self._deepspeed.optimizer
        flats = {0: lambda: list(self.model.parameters()), 3: lambda: zero.fp32_partitioned_groups_flat}
        for flat in flats.get(self.stage, lambda: zero.single_partition_of_fp32_groups)():
            if not self.adam.state[flat]:
                self.adam.state[flat] = {
                    "step": torch.tensor(0.0),
                    **{key: torch.zeros_like(flat.data) for key in MOMENTS},
                }
        if self.stage in (1, 2):
            zero._lazy_init_hp_params_optimizer_state()


def _summed(
    own: dict[str, Tensor], flags: Iterable[bool], world: World
) -> tuple[dict[str, Tensor], list[bool]]:
    """Every sum and flag over all ranks, in one exchange."""
    said = torch.tensor([float(f) for f in flags], dtype=torch.float64)
    shapes = {name: value.shape for name, value in own.items()}
    flat = torch.cat([*(v.reshape(-1).double().cpu() for v in own.values()), said])
    parts = list(world.sum(flat).cpu().split([s.numel() for s in shapes.values()] + [len(said)]))
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=False)}, [
        bool(v) for v in parts[-1].tolist()
    ]


def deepspeed_config(settings: EngineSettings, optim: Optim, cuda: bool, accumulation: int) -> dict[str, Any]:
    """Our settings in DeepSpeed's words, explicit where its defaults changed; the user's JSON merged in."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "overlap_comm": cuda,
        "round_robin_gradients": False,
    }
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cuda}
    own = {
        # the loss is a sum over the global batch: DeepSpeed's count of samples is not used
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        # stage 0 is clipped here, before its step
        "gradient_clipping": optim.clip_norm if settings.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "prescale_gradients": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": False},  # precision is autocast's; see the head of this file
        "fp16": {"enabled": False},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if settings.deepspeed is None:
        return own
    try:
        theirs = json.loads(Path(settings.deepspeed).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"engine.deepspeed is {settings.deepspeed!r}: {error}") from None
    return _merged(own, theirs, f"engine.deepspeed {settings.deepspeed}: ")


def _merged(own: dict[str, Any], theirs: dict[str, Any], where: str) -> dict[str, Any]:
    merged = dict(own)
    for key, value in theirs.items():
        if isinstance(value, dict) and isinstance(own.get(key), dict):
            merged[key] = _merged(own[key], value, f"{where}{key}.")
        elif key in own and own[key] != value:
            raise ValueError(
                f"{where}{key} is {value!r}, but the run's configuration makes it {own[key]!r}: "
                f"leave it out there, and set it under engine: or optim:"
            )
        else:
            merged[key] = value
    return merged


def _initialize(
    module: nn.Module, adam: Adam, settings: EngineSettings, optim: Optim, world: World, accumulation: int
):
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if world.device.type == "cuda" else "cpu")
    import logging

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # its shared-memory sums need a compiler and add in another order than gloo
    if world.device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = deepspeed_config(settings, optim, world.device.type == "cuda", accumulation)
    engine, *_ = deepspeed.initialize(model=module, optimizer=adam, config=config, dist_init_required=False)
    return engine
