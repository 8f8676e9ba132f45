"""A folder of music becomes labelled shards: scan → plan → decode → codes → cqt → audit.

Read `label` first; the rest is its steps."""

import os
from dataclasses import asdict, dataclass

from cluster.runner import runner
from pipeline.labelling import registry, teachers
from pipeline.labelling.catalogs import Catalogs
from pipeline.labelling.lock import locked
from pipeline.labelling.progress import Progress
from pipeline.labelling.run import LabelRun, too_many
from pipeline.labelling.summary import Outcome, summarise, summarise_part
from stages.label.recipe import Config
from stages.label.scan.scan import check_roots
from stages.shards.storage import Storage


@dataclass(frozen=True)
class LabelOptions:
    """What the configuration does not hold."""

    retry_rejected: str | None = None
    refit: bool = False
    plain: bool = False  # in processes of this machine, without Ray
    shards: str | None = None  # K/N: every N-th shard of the plan that is there, from the K-th on
    finish: bool = False  # only the tables, of what is finished
    limit: int | None = None  # the first shards of the plan

    def __post_init__(self):
        whole = self.finish or self.refit or self.retry_rejected is not None
        if self.shards is not None and whole:
            raise ValueError(
                "--shards is for a part: --finish, --refit and --retry-rejected are of a whole run"
            )
        self.stripe  # noqa: B018 - checked

    @property
    def stripe(self) -> tuple[int, int] | None:
        if self.shards is None:
            return None
        first, slash, count = self.shards.partition("/")
        if not (slash and first.isdigit() and count.isdigit() and int(first) < int(count)):
            raise ValueError(
                f"--shards is {self.shards!r}: expected K/N with K from 0 to N - 1, such as 3/64"
            )
        return int(first), int(count)

    @property
    def part(self) -> str:
        """The name of what may run beside other parts; empty for a whole run."""
        return "{}-of-{}".format(*self.stripe) if self.stripe else ""


def label(config: Config, options: LabelOptions = LabelOptions()) -> Outcome:
    """The same command goes on after any interruption."""
    published = check(config, options.plain)
    out = open_out(config)
    progress = Progress(out)
    with locked(out, progress.say, options.part):
        progress.log("start", audio=list(config.run.audio), **asdict(options))
        try:
            outcome = _label(config, options, out, progress, published)
        except BaseException as error:
            progress.stop()
            progress.log("stopped" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
            if out.is_gone() and isinstance(error, Exception):
                raise OSError(
                    f"OUT {out.root} was deleted or moved while this run worked on it: the same command "
                    f"starts over, or goes on if you move it back first"
                ) from None
            raise
        progress.log("end", failed=len(outcome.failed), rejected=outcome.rejected, kept=outcome.kept)
        return outcome


def _label(
    config: Config, options: LabelOptions, out: Storage, progress: Progress, published: bytes | None
) -> Outcome:
    catalogs, run = _planned(config, out, progress, options)
    run.weights = run.known_weights(published, options.refit)
    if (options.part or options.finish) and run.weights is None:
        raise ValueError(
            "the teacher of this configuration is not fitted yet: run `overtone fit-codes` with it first, or "
            "`overtone labels` without --shards and --finish, with --limit 1"
        )
    scanned = catalogs.scanned
    run.stopped = too_many(config.run, "scan", scanned.rejected, scanned.found)
    if not options.finish and not run.stopped and (run.weights is None or run.pending()):
        run.check_space()
        run.compute(options.refit)
    if options.part:
        return summarise_part(out, run, options.part)
    run.gather(catalogs.live(), catalogs.refused(), whole=options.finish)
    catalogs.write_rejected(run.registry.names)
    return summarise(out, config, catalogs, run, options.finish)


def check(config: Config, plain: bool) -> bytes | None:
    """Returns the teacher's published weights. ValueError for missing audio, cluster, GPU or weights."""
    check_roots(list(config.run.audio), config.run.exclude, config.run.include_hidden)
    runner(plain).preflight(max(pool.gpus for pool in config.run.pools.used(config.recipe)))
    return teachers.located(config.recipe, config.run.weights)


def _planned(
    config: Config, out: Storage, progress: Progress, options: LabelOptions
) -> tuple[Catalogs, LabelRun]:
    known, runs = registry.planned(out, config.recipe), runner(options.plain)
    catalogs = Catalogs(out, config, progress, runs)
    if options.finish or options.part:
        catalogs.as_they_are()
    else:
        catalogs.scan_and_plan(options.retry_rejected)
    planned = catalogs.live_shards()
    first, step = options.stripe or (0, 1)
    own = planned[first::step][: options.limit]
    return catalogs, LabelRun(config, out, progress, known, own, runs, planned, options.part)


def fit_only(config: Config, options: LabelOptions) -> str:
    """Decode what a fit needs, and fit; returns the path of the weights."""
    if not teachers.is_fitted(config.recipe):
        raise ValueError("recipe.codes names no teacher that is fitted: nothing to fit (mel_rvq is one)")
    check(config, options.plain)
    out = open_out(config)
    progress = Progress(out)
    with locked(out, progress.say):
        _, run = _planned(config, out, progress, options)
        run.weights = run.known_weights(None, options.refit)
        if run.weights is None:
            run.compute(options.refit, fit_only=True)
        if run.weights is None:
            raise OSError(f"the shards of the fit are not finished: {next(iter(run.failed.values()))}")
        return out.path(run.weights.name)


def open_out(config: Config) -> Storage:
    """ValueError with the system's message unless it can be written."""
    out, name = Storage(config.run.out), f"writable-{os.getpid()}"
    try:
        if out.is_local:
            os.makedirs(out.place, exist_ok=True)
            out = Storage(config.run.out, standing=True)
        out.write(name, b"")
        out.delete(name)
    except OSError as error:
        raise ValueError(f"OUT {out.root} cannot be written: {error}") from None
    return out
