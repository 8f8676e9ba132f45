"""What decides the bytes of a labelled corpus (`recipe:`), and what does not (`run:`)."""

import importlib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from stages import config
from stages.config import require
from stages.label.base import Teacher
from stages.label.codes import hop_samples
from stages.label.cqt import CqtStage
from stages.label.decode import Decode
from stages.signal.rates import HOP_SAMPLES

TEACHERS = {
    "encodec": "stages.label.teachers.encodec:Encodec",
    "mel_rvq": "stages.label.teachers.mel_rvq:MelRvq",
    "best_rq": "stages.label.teachers.best_rq:BestRq",
    "kmeans": "stages.label.teachers.kmeans:KMeans",
}


@dataclass(frozen=True)
class Plan:
    shard_minutes: float = 60.0
    validation_share: float = 0.02  # of recordings, at least one

    def __post_init__(self):
        require(
            0 < self.shard_minutes <= 24 * 60,
            "recipe.plan.shard_minutes",
            self.shard_minutes,
            "expected above 0, at most 1440",
        )
        require(
            0 <= self.validation_share < 1,
            "recipe.plan.validation_share",
            self.validation_share,
            "expected at least 0, below 1",
        )


@dataclass(frozen=True)
class Recipe:
    plan: Plan = Plan()
    decode: Decode = Decode()
    codes: Teacher | None = None
    cqt: CqtStage | None = CqtStage()
    threads: int = 1  # of one codes or cqt worker: float sums depend on it
    fit_threads: int = 1  # while a teacher is fitted: two threads wait for each other on busy cores

    def __post_init__(self):
        require(1 <= self.threads <= 64, "recipe.threads", self.threads, "expected 1 to 64")
        require(1 <= self.fit_threads <= 64, "recipe.fit_threads", self.fit_threads, "expected 1 to 64")
        if self.codes is not None:
            hop = hop_samples(self.codes)
            require(
                hop > 0 and hop % HOP_SAMPLES == 0,
                "hop_samples",
                hop,
                f"of teacher {self.codes.name}; expected a multiple of {HOP_SAMPLES}",
            )
            size = self.codes.codebook_size
            require(
                2 <= size <= 65_536,
                "codebook_size",
                size,
                f"of teacher {self.codes.name}; expected 2 to 65536, codes are uint16",
            )


@dataclass(frozen=True)
class Pool:
    """One stage's workers. Unset, the number grows and shrinks with the cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 2.0
    max_workers: int | None = None

    def __post_init__(self):
        require(self.cpus > 0, "cpus", self.cpus, "expected above 0; fractions such as 0.5 may be")
        require(
            self.gpus >= 0, "gpus", self.gpus, "expected 0 (no GPU) or more; fractions such as 0.25 may be"
        )
        require(self.memory_gb > 0, "memory_gb", self.memory_gb, "expected above 0")
        require(
            self.max_workers is None or self.max_workers >= 1,
            "max_workers",
            self.max_workers,
            "expected 1 or more",
        )


@dataclass(frozen=True)
class Pools:
    decode: Pool = Pool()
    codes: Pool = Pool()
    cqt: Pool = Pool()
    audit: Pool = Pool(cpus=0.5, memory_gb=1.0)

    def used(self, recipe: Recipe) -> list[Pool]:
        """Of the stages that this recipe has."""
        labels = [p for p, stage in ((self.codes, recipe.codes), (self.cqt, recipe.cqt)) if stage]
        return [self.decode, *labels, self.audit]


@dataclass(frozen=True)
class Run:
    audio: tuple[str, ...] = ()
    out: str = "data/labels"
    exclude: tuple[str, ...] = ()  # globs on the path below its root
    weights: str | None = None  # of a teacher with published weights
    cpus: int | None = None  # of this machine, when Ray is started here
    pools: Pools = Pools()
    max_rejected_share: float = 0.05
    stall_s: float = 60.0  # a decoder without audio for so long hangs
    decode_memory_gb: float = 4.0
    attempts: int = 3  # of one shard at one stage, when its worker dies
    scan_workers: int | None = None
    max_failed_shards: int = field(default=100)  # then the run stops

    def __post_init__(self):
        require(
            len(self.audio) > 0,
            "run.audio",
            list(self.audio),
            "name at least one folder, s3:// prefix or list of files",
        )
        require(
            all(self.audio),
            "run.audio",
            list(self.audio),
            "an empty path; is a variable of your command unset?",
        )
        require(bool(self.out), "run.out", self.out, "an empty path; is a variable of your command unset?")
        require(
            0 <= self.max_rejected_share <= 1,
            "run.max_rejected_share",
            self.max_rejected_share,
            "expected 0 to 1",
        )
        require(self.cpus is None or self.cpus >= 1, "run.cpus", self.cpus, "expected at least 1")
        require(self.attempts >= 1, "run.attempts", self.attempts, "expected at least 1")
        require(self.stall_s > 0, "run.stall_s", self.stall_s, "expected seconds above 0")
        require(
            self.decode_memory_gb >= 0.3,
            "run.decode_memory_gb",
            self.decode_memory_gb,
            "expected 0.3, which a decoder needs, or more",
        )
        require(
            self.scan_workers is None or self.scan_workers >= 1,
            "run.scan_workers",
            self.scan_workers,
            "expected at least 1",
        )
        require(
            self.max_failed_shards >= 0, "run.max_failed_shards", self.max_failed_shards, "expected 0 or more"
        )


@dataclass(frozen=True)
class Config:
    recipe: Recipe
    run: Run


def load(path: str, overrides: list[str] = ()) -> Config:
    """A checked configuration; raises ValueError naming the field, the value and the remedy."""
    data = config.load(path, overrides)
    return config.build(Config, data, choose={Teacher: _teacher_class})


def _teacher_class(data: dict, where: str) -> type:
    name = data.pop("teacher", None)
    require(
        isinstance(name, str),
        f"{where}.teacher",
        name,
        f"name one of {', '.join(TEACHERS)}, or package.module:Class",
    )
    if name not in TEACHERS and ":" not in name:
        raise ValueError(
            config.unknown(f"{where}.teacher {name!r}", name, list(TEACHERS)).replace(
                "unknown key ", "unknown "
            )
        )
    module, _, attribute = TEACHERS.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}.teacher {name!r} cannot be imported: {error}") from None


def audio_recipe(recipe: Recipe) -> dict[str, Any]:
    return {"stage": "decode", "version": Decode.version, **asdict(recipe.decode)}


def cqt_recipe(recipe: Recipe, audio8: str) -> dict[str, Any]:
    return {
        "stage": "cqt",
        "version": CqtStage.version,
        "audio": audio8,
        "threads": recipe.threads,
        **own_fields(recipe.cqt),
    }


def teacher_recipe(recipe: Recipe) -> dict[str, Any]:
    return {"teacher": recipe.codes.name, "version": recipe.codes.version, **own_fields(recipe.codes)}


def own_fields(part: Any) -> dict[str, Any]:
    """A stage's or teacher's fields. Those that came `later` are left out at their default: columns made
    before they existed keep their names."""
    later = getattr(part, "later", ())
    values = {
        f.name: getattr(part, f.name)
        for f in fields(part)
        if f.name not in later or getattr(part, f.name) != f.default
    }
    return {name: asdict(value) if is_dataclass(value) else value for name, value in values.items()}


def codes_recipe(recipe: Recipe, audio8: str, weights_sha256: str | None) -> dict[str, Any]:
    return {
        "stage": "codes",
        "version": 1,
        "audio": audio8,
        "threads": recipe.threads,
        "weights_sha256": weights_sha256,
        **{"teacher": teacher_recipe(recipe)},
    }


def fit_recipe(recipe: Recipe, audio8: str) -> dict[str, Any]:
    """What a fitted teacher depends on besides the audio itself."""
    return {
        "audio": audio8,
        "threads": recipe.fit_threads,
        "plan": asdict(recipe.plan),
        **teacher_recipe(recipe),
    }
