"""A folder of music becomes labelled shards: scan → plan → decode → codes → cqt → audit.

Read `label` first; the rest is its steps."""

import os
from dataclasses import asdict, dataclass

from cluster.runner import runner
from pipeline.labelling import registry, teachers
from pipeline.labelling.catalogs import Catalogs
from pipeline.labelling.lock import locked
from pipeline.labelling.progress import Progress
from pipeline.labelling.run import LabelRun
from pipeline.labelling.summary import Outcome, summarise
from stages.label.recipe import Config
from stages.label.scan.scan import check_roots
from stages.shards.storage import Storage


@dataclass(frozen=True)
class LabelOptions:
    """What the configuration does not hold."""

    retry_rejected: str | None = None
    refit: bool = False
    plain: bool = False  # in processes of this machine, without Ray


def label(config: Config, options: LabelOptions = LabelOptions()) -> Outcome:
    """The same command goes on after any interruption."""
    published = check(config, options.plain)
    out = open_out(config)
    with locked(out):
        progress = Progress(out)
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
    if run.weights is None or run.pending():
        run.check_space()
        run.compute(options.refit)
    run.gather(catalogs.live(), catalogs.refused())
    catalogs.write_rejected(run.registry.names)
    return summarise(out, config, catalogs, run.registry, run.failed)


def check(config: Config, plain: bool) -> bytes | None:
    """Returns the teacher's published weights. ValueError for missing audio, cluster, GPU or weights."""
    check_roots(list(config.run.audio), config.run.exclude, config.run.include_hidden)
    runner(plain).preflight(max(pool.gpus for pool in config.run.pools.used(config.recipe)))
    return teachers.located(config.recipe, config.run.weights)


def _planned(
    config: Config, out: Storage, progress: Progress, options: LabelOptions
) -> tuple[Catalogs, LabelRun]:
    known = registry.planned(out, config.recipe)
    catalogs = Catalogs(out, config, progress)
    catalogs.scan_and_plan(options.retry_rejected)
    return catalogs, LabelRun(config, out, progress, known, catalogs.live_shards(), runner(options.plain))


def fit_only(config: Config, options: LabelOptions) -> str:
    """Decode what a fit needs, and fit; returns the path of the weights."""
    if not teachers.is_fitted(config.recipe):
        raise ValueError("recipe.codes names no teacher that is fitted: nothing to fit (mel_rvq is one)")
    check(config, options.plain)
    out = open_out(config)
    with locked(out):
        _, run = _planned(config, out, Progress(out), options)
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
