"""The whole configuration of a training run, and what of it a resumed run may not change unasked."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from stages import config
from stages.config import require
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.settings import Data
from stages.pretrain.model.config import Model
from stages.pretrain.model.objective import Objective
from stages.pretrain.run.engine import EngineSettings
from stages.pretrain.run.optimiser import Optim

ALLOW = ("data", "model", "objective", "masking", "mixture", "optim", "seed", "global_batch", "all")


@dataclass(frozen=True)
class Run:
    """Where and on what the run happens."""

    name: str = "mert"
    dir: str = "runs"  # RUN is DIR/NAME; every rank must see it
    seed: int = 0
    weights: str | None = None  # published weights to go on from: a Hugging Face folder or a fairseq file
    ranks: int | None = None  # unset: one a GPU of the cluster, or one on a machine without GPUs
    threads: int | None = None  # of one rank on the CPU; unset: its share of the cores
    # after a rank or node died; a finished checkpoint in between starts the count anew
    max_restarts: int = 10
    stall_minutes: float = 10.0  # a rank without progress for so long ends the run with every rank's stack

    def __post_init__(self):
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            "run.name",
            self.name,
            "expected a plain folder name",
        )
        require(self.seed >= 0, "run.seed", self.seed, "expected 0 or more")
        require(self.ranks is None or self.ranks >= 1, "run.ranks", self.ranks, "expected at least 1")
        require(self.threads is None or self.threads >= 1, "run.threads", self.threads, "expected at least 1")
        require(self.max_restarts >= 0, "run.max_restarts", self.max_restarts, "expected 0 or more")
        require(self.stall_minutes > 0, "run.stall_minutes", self.stall_minutes, "expected minutes above 0")


@dataclass(frozen=True)
class Checkpoints:
    """Written at whichever comes first, at SIGTERM or Ctrl-C, and at the end."""

    every_updates: int = 1000
    every_minutes: float = 30.0
    keep: int = 3  # the newest, and the best by validation loss
    at: str | None = None  # folder or s3:// prefix; unset: RUN/checkpoints

    def __post_init__(self):
        require(
            self.every_updates >= 1, "checkpoints.every_updates", self.every_updates, "expected at least 1"
        )
        require(
            self.every_minutes > 0,
            "checkpoints.every_minutes",
            self.every_minutes,
            "expected minutes above 0",
        )
        require(self.keep >= 1, "checkpoints.keep", self.keep, "expected at least 1")


@dataclass(frozen=True)
class Watch:
    """What people see while it trains."""

    validate_every: int = 1000  # updates
    bootstrap: int = 1000  # resamplings of the held-out recordings, for the gain's interval
    baseline_crops: int = 512  # training crops from which code frequencies and CQT means are counted
    tensorboard: bool = True
    wandb: bool = False  # Weights & Biases, when it is installed
    live: bool = True  # a live view on a terminal

    def __post_init__(self):
        require(self.validate_every >= 1, "watch.validate_every", self.validate_every, "expected at least 1")
        require(self.bootstrap >= 100, "watch.bootstrap", self.bootstrap, "expected at least 100")
        require(self.baseline_crops >= 1, "watch.baseline_crops", self.baseline_crops, "expected at least 1")


@dataclass(frozen=True)
class Guard:
    """What happens when an update's loss or gradient is not finite, or its loss jumps."""

    # skip an update whose loss is above this many times the mean of the last ones
    spike: float | None = 3.0
    window: int = 50  # updates of that mean; none is judged before so many were seen
    in_a_row: int = 10  # bad updates after which `then` happens
    then: str = "stop"  # stop | restore: the last good checkpoint, past the data since

    def __post_init__(self):
        require(
            self.spike is None or self.spike > 1,
            "guard.spike",
            self.spike,
            "expected above 1, or null for none",
        )
        require(self.window >= 1, "guard.window", self.window, "expected at least 1")
        require(self.in_a_row >= 1, "guard.in_a_row", self.in_a_row, "expected at least 1")
        require(self.then in ("stop", "restore"), "guard.then", self.then, "expected stop or restore")


@dataclass(frozen=True)
class Resume:
    allow: tuple[str, ...] = ()  # what a resumed run may change

    def __post_init__(self):
        for name in self.allow:
            require(name in ALLOW, "resume.allow", name, f"expected some of {', '.join(ALLOW)}")


@dataclass(frozen=True)
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
    checkpoints: Checkpoints = Checkpoints()
    watch: Watch = Watch()
    resume: Resume = Resume()


def load(path: str, overrides: list[str] = ()) -> Config:
    """A checked configuration; raises ValueError naming the field, the value and the remedy."""
    return config.build(Config, config.load(path, overrides))


def check_target(configuration: Config, cqt: Any) -> None:
    """Refuse a logarithm of logarithms; `cqt`: the pinned column, or None."""
    if cqt is not None and cqt.magnitude == "log" and configuration.objective.cqt_target == "log":
        raise ValueError(
            f"objective.cqt_target is log, but {cqt.name} holds logarithms already: set "
            "objective.cqt_target=linear, which takes the column as it is"
        )


def identity(configuration: Config) -> dict[str, Any]:
    """What decides the curve besides the data: sections that a resumed run must repeat."""
    own = asdict(configuration)
    batch = own["optim"].pop("global_batch")
    return {name: own[name] for name in ("model", "objective", "masking", "mixture", "optim")} | {
        "seed": own["run"]["seed"],
        "global_batch": batch,
    }


def _completed(known: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = dict(known)
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(known.get(name), dict):
            found[name] = _completed(known[name], default)
        else:
            found.setdefault(name, default)
    return found


def check_same(before: dict[str, Any], now: dict[str, Any], allow: tuple[str, ...], run: str) -> None:
    """Refuse a resumed run that is another one; ValueError with both values and the way to override.

    A choice that came after the run was begun has its default there: what was done until then."""
    before = _completed(before, json.loads(json.dumps(identity(Config(data=Data())))))
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
