"""What decides the bytes of a labelled corpus (`recipe:`), and what does not (`run:`)."""

import importlib
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, get_args

from pydantic import Field, WrapValidator

from stages import config
from stages.config import (
    NUMBER,
    Count,
    Flag,
    NotNegative,
    OneOrMore,
    PathName,
    Positive,
    Several,
    Share,
    ShareBelow1,
    remedy,
    require,
    settings,
)
from stages.label.base import Teacher
from stages.label.codes import hop_samples
from stages.label.cqt import CqtStage
from stages.label.decode import Decode
from stages.label.teachers.best_rq import BestRq
from stages.label.teachers.encodec import Encodec
from stages.label.teachers.kmeans import KMeans
from stages.label.teachers.mel_rvq import MelRvq
from stages.signal.rates import HOP_SAMPLES

BuiltIn = Encodec | MelRvq | BestRq | KMeans
Threads = Annotated[Count, Field(le=64)]
Fraction = remedy("fractions such as 0.5 are allowed")


def _teacher(data: Any, built_in: Callable[[Any], Teacher]) -> Teacher:
    if hasattr(data, "open"):
        return data
    if not isinstance(data, dict):
        raise ValueError(f"is {data!r}: expected a mapping")
    known = {teacher.name: {f.name for f in fields(teacher)} for teacher in get_args(BuiltIn)}
    name, names = data.get("teacher"), list(known)
    if name in names:
        # `--set recipe.codes.teacher=…` keeps the keys that the file gives for its own teacher
        for key in sorted(set.union(*known.values()) & data.keys() - known[name]):
            whole = f"give the whole teacher, for example --set 'recipe.codes={{teacher: {name}}}'"
            raise ValueError(f"{key} is a key of another teacher than {name}: {whole}")
        return built_in(data)
    choice = f"name one of {', '.join(names)}, or package.module:Class"
    require(isinstance(name, str), "teacher", name, choice)
    module, colon, attribute = name.partition(":")
    near = get_close_matches(name, names, 1, 0.5)
    require(colon, "teacher", name, f"did you mean {near[0]!r}?" if near else choice)
    try:
        own = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"teacher {name!r} cannot be imported: {error}") from None
    require(is_dataclass(own), "teacher", name, "the class is no dataclass; its fields are its recipe")
    return config.build(own, {key: value for key, value in data.items() if key != "teacher"})


@settings
class Plan:
    """How recordings are shared out."""

    shard_minutes: Annotated[float, Field(gt=0, le=24 * 60), NUMBER] = 60.0  # of audio, about
    validation_share: ShareBelow1 = 0.02  # of recordings, at least one


@settings
class Recipe:
    """What decides the bytes: a change of it makes new columns."""

    plan: Plan = Plan()
    decode: Decode = Decode()
    codes: Annotated[BuiltIn, Field(discriminator="teacher"), WrapValidator(_teacher)] | None = None
    cqt: CqtStage | None = CqtStage()
    threads: Threads = 1  # of one codes or cqt worker: float sums depend on it
    fit_threads: Threads = 1  # while a teacher is fitted: two threads wait for each other on busy cores

    def __post_init__(self):
        if self.codes is not None:
            hop, size, whose = hop_samples(self.codes), self.codes.codebook_size, self.codes.name
            multiple = f"of teacher {whose}; expected a multiple of {HOP_SAMPLES}"
            require(hop > 0 and hop % HOP_SAMPLES == 0, "codes.hop_samples", hop, multiple)
            uint16 = f"of teacher {whose}; expected 2 to 65536, codes are uint16"
            require(2 <= size <= 65_536, "codes.codebook_size", size, uint16)


@settings
class Pool:
    """One stage's workers."""

    cpus: Annotated[Positive, Fraction] = 1.0  # of one worker
    gpus: Annotated[NotNegative, Fraction] = 0.0  # of one worker
    memory_gb: Positive = 2.0  # of one worker
    max_workers: Count | None = None  # unset: their number grows and shrinks with the cluster


@settings
class Pools:
    """The workers of each stage."""

    decode: Pool = Pool()
    codes: Pool = Pool()
    cqt: Pool = Pool()
    audit: Pool = Pool(cpus=0.5, memory_gb=1.0)

    def used(self, recipe: Recipe) -> list[Pool]:
        """Of the stages that this recipe has."""
        labels = [getattr(self, name) for name in ("codes", "cqt") if getattr(recipe, name)]
        return [self.decode, *labels, self.audit]


@settings
class Run:
    """Where and with what the labelling happens: changes no byte."""

    # folders, s3:// prefixes or lists of files
    audio: Annotated[OneOrMore[PathName], remedy("name at least one folder, s3:// prefix or list of files")]
    out: PathName = "data/labels"  # OUT, a folder or s3:// prefix
    exclude: Several[str] = ()  # globs on the path below its root
    include_hidden: Flag = False  # label what systems put beside music too, such as ._x.mp3 and @eaDir
    weights: str | None = None  # of a teacher with published weights
    cpus: Count | None = None  # of this machine, when Ray is started here
    pools: Pools = Pools()
    max_rejected_share: Share = 0.05  # of recordings
    stall_s: Positive = 60.0  # a decoder without audio for so long hangs
    # limit of one decoder
    decode_memory_gb: Annotated[float, Field(ge=0.3), NUMBER, remedy("a decoder needs 0.3")] = 4.0
    attempts: Count = 3  # of one shard at one stage, when its worker dies
    # one column's shards on several kinds of CPU or GPU, whose labels may differ in a few bytes
    mixed_devices: Flag = False
    scan_workers: Count | None = None  # that read headers, on a cluster in proportion; unset: one a CPU
    # of finished audio kept below each machine's TMPDIR for its other stages, when OUT is on S3; at most half
    # of what is free there
    cache_gb: NotNegative = 20.0
    # then the run stops: below 1 a share of those it has to do, but never before 10; from 1 on a number
    max_failed_shards: NotNegative = 0.01


@settings
class Config:
    recipe: Recipe
    run: Run


def load(path: str, overrides: list[str] = ()) -> Config:
    """ValueError names the field, the value and the remedy."""
    return config.build(Config, config.load(path, overrides))


def audio_recipe(recipe: Recipe) -> dict:
    return {"stage": "decode", "version": Decode.version, **asdict(recipe.decode)}


def cqt_recipe(recipe: Recipe, audio8: str) -> dict:
    own = {"stage": "cqt", "version": CqtStage.version, "audio": audio8, "threads": recipe.threads}
    return own | own_fields(recipe.cqt)


def teacher_recipe(recipe: Recipe) -> dict:
    return {"teacher": recipe.codes.name, "version": recipe.codes.version, **own_fields(recipe.codes)}


def own_fields(part: Any) -> dict:
    """Its fields; those that came `later` not at their default: older columns keep their names."""
    later, values = getattr(part, "later", ()), asdict(part)
    defaults = {f.name: f.default for f in fields(part) if f.name in later}
    return {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}


def codes_recipe(recipe: Recipe, audio8: str, weights_sha256: str | None) -> dict:
    own = {"stage": "codes", "version": 1, "audio": audio8, "threads": recipe.threads}
    return own | {"weights_sha256": weights_sha256, "teacher": teacher_recipe(recipe)}


def fit_recipe(recipe: Recipe, audio8: str) -> dict:
    own = {"audio": audio8, "threads": recipe.fit_threads, "plan": asdict(recipe.plan)}
    return own | teacher_recipe(recipe)
