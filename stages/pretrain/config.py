"""The configuration of a training run, and what a resumed run may change only by allowance."""

import json
from dataclasses import asdict
from typing import Any, Literal

from stages import config
from stages.config import Count, Natural, Positive, Several, check, settings
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.settings import Data
from stages.pretrain.model.config import Model
from stages.pretrain.model.objective import Objective
from stages.pretrain.run.settings import CheckpointSettings, EngineSettings, Guard, Optim, Watch

OLD_NAMES = {
    "optim.rate": "lr",
    "optim.cqt_head_rate": "cqt_head_lr_scale",
    "run.weights": "init_from",
    "data.weights": "passes",
}


@settings
class Run:
    """Where and on what the run happens."""

    name: str = "mert"  # RUN is DIR/NAME
    dir: str = "runs"  # every rank must see it
    seed: Natural = 0  # of initial values, order, crops, masks and dropout
    init_from: str | None = None  # published weights to begin with: a Hugging Face folder or a fairseq file
    ranks: Count | None = None  # unset: one a GPU of the cluster, or one on a machine without GPUs
    threads: Count | None = None  # of one rank on the CPU; unset: its share of the cores
    # after a rank or node died; a finished checkpoint in between starts the count anew
    max_restarts: Natural = 10
    stall_minutes: Positive = 10.0  # a rank without progress for so long ends the run with every rank's stack

    def __post_init__(self):
        plain = self.name not in ("", ".", "..") and "/" not in self.name
        check(plain, self, "name", "expected a plain folder name")


_Section = Literal["data", "model", "objective", "masking", "mixture", "optim", "seed", "global_batch", "all"]


@settings
class Resume:
    """What a run that goes on may change."""

    allow: Several[_Section] = ()  # sections


@settings
class Config:
    data: Data
    run: Run = Run()
    model: Model = Model()
    objective: Objective = Objective()
    masking: Masking = Masking()
    mixture: Mixture = Mixture()
    optim: Optim = Optim()
    engine: EngineSettings = EngineSettings()
    guard: Guard = Guard()
    checkpoints: CheckpointSettings = CheckpointSettings()
    watch: Watch = Watch()
    resume: Resume = Resume()


def load(path: str, overrides: list[str] = ()) -> Config:
    """Raises ValueError naming the field, the value and the remedy."""
    return config.build(Config, config.load(path, overrides, OLD_NAMES))


def check_target(configuration: Config, cqt: Any) -> None:
    """Refuse a logarithm of logarithms; `cqt`: the pinned column, or None."""
    if cqt is not None and cqt.magnitude == "log" and configuration.objective.musical:
        raise ValueError(
            f"objective.musical is computed from linear magnitudes, but {cqt.name} holds logarithms: label "
            "with cqt.magnitude=linear, or leave objective.musical empty"
        )
    if cqt is not None and cqt.magnitude == "log" and configuration.objective.cqt_target == "log":
        raise ValueError(
            f"objective.cqt_target is log, but {cqt.name} holds logarithms already: set "
            "objective.cqt_target=linear, which takes the column as it is"
        )


def identity(configuration: Config) -> dict[str, Any]:
    """What decides the curve besides the data: what a resumed run must repeat."""
    own = asdict(configuration)
    own |= {"seed": own["run"]["seed"], "global_batch": own["optim"].pop("global_batch")}
    names = ("model", "objective", "masking", "mixture", "optim", "seed", "global_batch")
    return {name: own[name] for name in names}


def _completed(known: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = defaults | known
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(found[name], dict):
            found[name] = _completed(found[name], default)
    return found


def check_same(before: dict[str, Any], now: dict[str, Any], allow: tuple[str, ...], run: str) -> None:
    """ValueError with both values and the way to override. A choice that is newer than the run has its
    default there: what was done until then."""
    defaults = json.loads(json.dumps(identity(Config(data=Data()))))
    before = _completed(config.renamed(before, OLD_NAMES), defaults)
    for section, value in now.items():
        old = before.get(section)
        if old == value or section in allow or "all" in allow:
            continue
        where, was, wanted = section, old, value
        if isinstance(value, dict) and isinstance(old, dict):
            field = next(k for k in value if old.get(k) != value[k])
            where, was, wanted = f"{section}.{field}", old.get(field), value[field]
        raise ValueError(
            f"{where} is {wanted!r}, the run at {run} was started with {was!r}: set it back, choose another "
            f"run.name, or go on with the new value by --set resume.allow={section}"
        )
