"""DeepSpeed's ZeRO stages without DeepSpeed: what the engine asks of them, and a model of two weights."""

import contextlib
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from tests.stages.pretrain.runs import Plain


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor(0.5))
        self.register_buffer("count", torch.tensor([7.0]))
        self.modes: list[tuple[bool, bool]] = []  # of each forward pass: training, autocast
        self.compiled = 0

    def compile(self) -> None:
        self.compiled += 1

    def forward(self, wave_BN, **others) -> dict[str, torch.Tensor]:
        self.modes.append((self.training, torch.is_autocast_enabled("cpu")))
        return {"loss": (wave_BN * self.weight).sum() + self.bias}


class Zero(Plain):
    """DeepSpeed's engine at stages 1 to 3, as far as ours looks into it; its step tells the norm and applies
    nothing."""

    def __init__(self, module, adam, settings, optim, world, accumulation: int):
        self.module, self.adam, self.accumulation, self.micro_steps = module, adam, accumulation, 0
        self.told: list = []
        flats = [torch.ones(3), torch.ones(2)]
        flats[0].grad = torch.ones(3)
        self.optimizer = SimpleNamespace(
            overflow=None,
            single_partition_of_fp32_groups=[torch.ones(4)],
            fp32_partitioned_groups_flat=flats,
            grad_partitions_flat_buffer=torch.ones(5),
            override_loss_scale=self.told.append,
            _lazy_init_hp_params_optimizer_state=lambda: self.told.append(
                [tuple(flat.shape) for flat in adam.state]
            ),
        )

    def step(self) -> None:
        grads = [p.grad for p in self.module.parameters()]
        self.norm = nn.utils.get_total_norm(grads)
        self.optimizer.overflow = torch.tensor(not math.isfinite(self.norm))
        self.adam.zero_grad()
        self.micro_steps += 1

    def get_global_grad_norm(self) -> torch.Tensor:
        return self.norm


class DeepSpeed:
    """The functions of the package `deepspeed`. `did`: what was called, in order."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.did: list[tuple] = []
        self.open: list[nn.Parameter] = []  # weights that are whole now
        package, utils = ModuleType("deepspeed"), ModuleType("deepspeed.utils")
        package.zero = SimpleNamespace(GatheredParameters=self.gather)
        package.ops = SimpleNamespace(__compatible_ops__={"deepspeed_shm_comm": True})
        package.initialize = self.initialize
        utils.safe_get_full_fp32_param = lambda p: self.did.append(("get", p)) or p + 100
        utils.safe_get_full_optimizer_state = lambda p, key: (
            self.did.append((f"get {key}", p)) or p + 200 + len(key)
        )
        utils.safe_set_full_fp32_param = lambda p, value: self.did.append(("set", p, value.tolist()))
        utils.safe_set_full_optimizer_state = lambda p, value, key: self.did.append(
            (f"set {key}", p, value.tolist())
        )
        patch.setitem(sys.modules, "deepspeed", package)
        patch.setitem(sys.modules, "deepspeed.utils", utils)
        self.package = package

    @contextlib.contextmanager
    def gather(self, parameters: list[nn.Parameter], modifier_rank: int | None = None):
        self.did.append(("gather", modifier_rank, *parameters))
        self.open = parameters
        yield
        self.did.append(("part", *[p.tolist() for p in parameters]))
        self.open = []

    def initialize(self, **told):
        self.did.append(("initialize", told))
        return "the engine", "an optimizer", None, None
