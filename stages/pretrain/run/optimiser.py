"""Adam, with a learning rate of its own for the CQT head."""

from collections.abc import Iterable

import torch

from stages.pretrain.run.settings import Optim


class Adam(torch.optim.AdamW):
    """AdamW over named parameters; `skip` leaves the next step out."""

    skip = False

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], optim: Optim):
        own, head, share = [], [], optim.cqt_head_lr_scale
        for name, parameter in named:
            (head if name.startswith("cqt_head.") and share != 1 else own).append(parameter)
        groups = [{"params": own, "share": 1.0}, {"params": head, "share": share}]
        options = {"betas": tuple(optim.betas), "eps": optim.epsilon, "weight_decay": optim.weight_decay}
        super().__init__([group for group in groups if group["params"]], lr=optim.lr, **options)

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["share"]

    def step(self, closure=None):
        if not self.skip:
            super().step(closure)
