"""The columns of one labelling run: what is pending, the teacher's fit, the chain on the cluster, the
tables."""

import contextlib
import time
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.labelling import registry, teachers
from pipeline.labelling.progress import Progress
from pipeline.labelling.registry import Registry
from pipeline.labelling.summary import shown
from stages.label import audit, gathering
from stages.label import recipe as recipes
from stages.label.base import Needs
from stages.label.codes import Codes
from stages.label.recipe import Config
from stages.label.shard import Job, ShardWorker
from stages.shards import record as records
from stages.shards.fetching import OneAhead
from stages.shards.storage import Storage, fetch_url
from stages.signal.rates import HOP_SAMPLES, RATE_HZ


def bytes_per_s(recipe: recipes.Recipe) -> dict[str, int]:
    """Bytes a second of audio takes in each column of this recipe: 16-bit audio, uint16 codes, CQT bins, at
    75 Hz."""
    sizes = {"audio": 2 * RATE_HZ}
    if recipe.codes:
        sizes["codes"] = RATE_HZ // HOP_SAMPLES * recipe.codes.codebooks * 2
    if recipe.cqt:
        sizes["cqt"] = RATE_HZ // HOP_SAMPLES * recipe.cqt.bins * np.dtype(recipe.cqt.storage).itemsize
    return sizes


@dataclass
class LabelRun:
    """The columns of one run over the shards of one plan."""

    config: Config
    out: Storage
    progress: Progress
    known: Registry | None
    shards: list[tuple[str, float]]  # name and planned seconds, in plan order
    weights: teachers.Weights | None = None
    failed: dict[str, str] = field(default_factory=dict)  # shard → what happened
    _registry: Registry | None = None
    _done: dict[str, set[str]] = field(default_factory=dict)

    @property
    def audio(self) -> tuple[str, str]:
        return registry.audio_name(self.known, self.config.recipe)

    def known_weights(self, published: bytes | None, refit: bool) -> teachers.Weights | None:
        """The teacher's weights, or None when they have to be fitted first."""
        recipe = self.config.recipe
        if published is not None:
            return teachers.store(self.out, recipe.codes.name, published, {"published": True})
        if not teachers.is_fitted(recipe):
            return teachers.Weights(None, None)
        return None if refit else teachers.fitted(self.out, recipe, self.audio[1])

    def jobs(self) -> list[Job]:
        """One job per current column, audio first."""
        recipe, run = self.config.recipe, self.config.run
        audio, audio8 = self.audio
        place = self.out.base if self.out.is_local else self.out.root
        options = {"stall_s": run.stall_s, "memory_gb": run.decode_memory_gb, "fetch": OneAhead(fetch_url)}
        jobs = [Job(recipe.decode, audio, audio, recipes.audio_recipe(recipe), place, options=options)]
        if recipe.codes and self.weights:
            own = recipes.codes_recipe(recipe, audio8, self.weights.sha256)
            jobs.append(
                Job(
                    Codes(recipe.codes),
                    f"codes-{records.recipe8(own)}",
                    audio,
                    own,
                    place,
                    self.weights.name,
                    self.weights.sha256,
                    _device(run.pools.codes),
                    recipe.threads,
                )
            )
        if recipe.cqt:
            own = recipes.cqt_recipe(recipe, audio8)
            jobs.append(
                Job(
                    recipe.cqt,
                    f"cqt-{records.recipe8(own)}",
                    audio,
                    own,
                    place,
                    device=_device(run.pools.cqt),
                    threads=recipe.threads,
                )
            )
        return jobs

    @property
    def registry(self) -> Registry:
        if self._registry is None:
            current = {job.stage.writes: (job.column, job.recipe) for job in self.jobs()}
            self._registry = registry.write(self.out, self.known, self.config.recipe, current)
        return self._registry

    def done(self, column: str) -> set[str]:
        """Finished shards of a column, listed once until a chain has run."""
        if column not in self._done:
            self._done[column] = records.finished(self.out, column)
        return self._done[column]

    def pending(self) -> list[str]:
        """Shards, in plan order, with an unfinished column or not yet audited; from one listing a column."""
        columns = [job.column for job in self.jobs()]
        done = set.intersection(*map(self.done, columns)) & gathering.gathered(self.out, columns)
        return [name for name, _ in self.shards if name not in done]

    def check_space(self) -> None:
        """Refuse a run whose output cannot fit."""
        free, seconds = self.out.free_bytes(), dict(self.shards)
        need, sizes = 0.0, bytes_per_s(self.config.recipe)
        for job in self.jobs():
            done = self.done(job.column)
            need += sizes[job.stage.writes] * sum(s for name, s in seconds.items() if name not in done)
        if free is not None and need > free:
            raise ValueError(
                f"{self.out.root} has {shown(free)} free, this run writes about {shown(need)}: "
                f"free some space or choose another OUT (--set run.out=…)"
            )

    def on_cluster(self, refit: bool, fit_only: bool = False) -> None:
        """Everything that needs Ray: check the nodes, fit the teacher if it is new, run the chain."""
        from cluster.session import check_nodes, session
        from cluster.sharded import size_pools

        self.progress.status("starting Ray")
        with session(self.config.run.cpus) as ray_session:
            check_nodes(self.out, list(self.config.run.audio))
            self.sweep()
            whole = replace(self, weights=self.weights or teachers.Weights(None, None))
            size_pools(
                whole.specs(whole.jobs(), audited=True),
                ray_session.cpus,
                ray_session.gpus,
                ray_session.node_cpus,
            )
            if self.weights is None:
                self.fit(ray_session, refit)
            pending = [] if fit_only else self.pending()
            if pending and not self.failed:
                self.registry  # noqa: B018 - noted before the first shard, so that `status` can speak of it
                self.chain(ray_session, self.jobs(), pending, audited=True)
        self.sweep()  # what workers that died during this run left

    def fit(self, ray_session, refit: bool) -> None:
        """Decode the shards a fit needs, fit, and store: once for this OUT and recipe."""
        from cluster.sharded import run_one_reporting

        recipe, (audio, audio8) = self.config.recipe, self.audio
        chosen = teachers.fit_shards(recipe, self.shards, refit)
        done = self.done(audio)
        self.chain(ray_session, self.jobs()[:1], [s for s in chosen if s not in done], audited=False)
        if self.failed:
            return
        place = self.out.base if self.out.is_local else self.out.root
        pool, started = self.config.run.pools.codes, time.time()

        def show(event: dict) -> None:
            shown = "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in event.items()
                if v is not None
            )
            self.progress.status(f"fitting {recipe.codes.name} on {len(chosen)} shards: {shown}")
            self.progress.log("fit", **event)

        cpus = min(recipe.fit_threads, max(1, int(ray_session.node_cpus)))
        self.weights = run_one_reporting(
            teachers.fit, show, place, recipe, audio, audio8, chosen, _device(pool), cpus=cpus, gpus=pool.gpus
        )
        self.progress.say(
            f"fitted {recipe.codes.name} on {len(chosen)} shards in {time.time() - started:.0f} s: "
            f"{self.out.path(self.weights.name)}"
        )

    def specs(self, jobs: list[Job], audited: bool) -> list:
        """The stages of a chain and what one worker of each reserves."""
        from cluster.sharded import StageSpec

        specs, pools = [], self.config.run.pools
        for job in jobs:
            pool = getattr(pools, job.stage.name)
            cpus = pool.cpus if job.stage.name == "decode" else max(pool.cpus, self.config.recipe.threads)
            specs.append(
                StageSpec(
                    job.stage.name,
                    partial(ShardWorker, job),
                    Needs(cpus, pool.gpus, pool.memory_gb),
                    pool.max_workers,
                    job.stage.cpu_s,
                )
            )
        if audited:
            opener = partial(audit.AuditWorker, jobs[0].out, tuple(job.column for job in jobs))
            specs.append(
                StageSpec(
                    "audit",
                    opener,
                    Needs(pools.audit.cpus, 0, pools.audit.memory_gb),
                    pools.audit.max_workers,
                    audit.CPU_S,
                )
            )
        return specs

    def chain(self, ray_session, jobs: list[Job], pending: list[str], audited: bool) -> None:
        """Stream these shards through the stages; failed ones are noted, a fatal failure ends the run."""
        from cluster.sharded import run_chain

        if not pending:
            return
        run, specs = self.config.run, self.specs(jobs, audited)
        self.progress.start({spec.name: len(pending) for spec in specs})
        rows = run_chain(specs, pending, ray_session, run.attempts, self.progress.event)
        with contextlib.closing(rows):
            for row in rows:
                if "failed" in row:
                    self.failed[row["shard"]] = f"{row['failed']}: {row['error']}"
                    if self.out.is_gone():
                        # said by `label`; every other shard would fail alike
                        raise FileNotFoundError(self.out.base)
                    if row["fatal"] or len(self.failed) > run.max_failed_shards:
                        break
        self._done.clear()
        self.progress.stop()

    def gather(self, live: pa.Table, refused: pa.Array) -> None:
        """Compact the indexes and statistics of finished shards, where the tables do not say what is
        there."""
        columns = self.registry.names
        done = set.intersection(*map(self.done, columns)) - set(self.failed)
        missing, stale = gathering.ungathered(self.out, columns, live, refused)
        new = (done - gathering.gathered(self.out, columns)) | (missing & done)
        if new or stale:
            gathering.gather(
                self.out, columns, sorted(new), live["recording"].combine_chunks(), self.progress.attempts
            )

    def sweep(self) -> None:
        """Remove attempts that killed runs left; no other run is alive, the lock says so."""
        for column in self.out.names("columns"):
            self.out.sweep(records.folder(column))
        self.out.sweep("")
        self.out.sweep(teachers.FOLDER)


def _device(pool: recipes.Pool) -> str:
    return "cuda" if pool.gpus else "cpu"
