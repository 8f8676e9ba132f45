"""The columns of one labelling run: pending shards, the teacher's fit, the chain of stages, the tables."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType

import numpy as np
import pyarrow as pa

from cluster.pools import Session, StageSpec, check_fits
from pipeline.labelling import registry, teachers
from pipeline.labelling.progress import Progress
from pipeline.labelling.registry import Registry
from pipeline.labelling.summary import shown
from pipeline.labelling.tables import Tables
from stages.label import audit, gathering
from stages.label import recipe as recipes
from stages.label.base import Needs
from stages.label.codes import Codes
from stages.label.machine import Kinds, recorded
from stages.label.recipe import Config
from stages.label.shard import Job, ShardWorker
from stages.shards import catalog, objects
from stages.shards import record as records
from stages.shards.fetching import OneAhead
from stages.shards.names import printable
from stages.shards.storage import Storage, fetch_url
from stages.signal.rates import FRAMES_PER_S, RATE_HZ

LONGEST = 10  # recordings named where the space is too small
FEW = 10  # failed shards, whatever their share
ENOUGH = 1000  # recordings, for the share of those rejected to be judged


def bytes_per_s(recipe: recipes.Recipe) -> dict[str, int]:
    """Bytes of a second of audio in each column: 16-bit audio, uint16 codes, CQT bins, at 75 Hz."""
    sizes = {"audio": 2 * RATE_HZ}
    if recipe.codes:
        sizes["codes"] = FRAMES_PER_S * recipe.codes.codebooks * 2
    if recipe.cqt:
        sizes["cqt"] = FRAMES_PER_S * recipe.cqt.bins * np.dtype(recipe.cqt.storage).itemsize
    return sizes


@dataclass
class LabelRun:
    config: Config
    out: Storage
    progress: Progress
    known: Registry | None
    shards: list[tuple[str, float]]  # to be done: name and planned seconds, in plan order
    runner: ModuleType  # of cluster.runner
    planned: list[tuple[str, float]]  # all of the plan
    part: str = ""  # beside others
    weights: teachers.Weights | None = None
    failed: dict[str, str] = field(default_factory=dict)  # shard → error
    stopped: str = ""  # why, before all shards were worked on
    _registry: Registry | None = None
    _done: dict[str, set[str]] = field(default_factory=dict)  # of columns
    _marked: dict[tuple[str, ...], set[str]] = field(default_factory=dict)  # of sets of columns

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
        recipe, run, (audio, audio8) = self.config.recipe, self.config.run, self.audio
        options = {"stall_s": run.stall_s, "memory_gb": run.decode_memory_gb, "fetch": OneAhead(fetch_url)}
        own = recipes.audio_recipe(recipe)
        jobs = [Job(recipe.decode, audio, audio, own, self.out.place, cache_gb=run.cache_gb, options=options)]
        labels = []
        if recipe.codes and self.weights:
            own = recipes.codes_recipe(recipe, audio8, self.weights.sha256)
            labels.append((Codes(recipe.codes), own, self.weights, run.pools.codes))
        if recipe.cqt:
            own = recipes.cqt_recipe(recipe, audio8)
            labels.append((recipe.cqt, own, teachers.Weights(None, None), run.pools.cqt))
        for stage, own, weights, pool in labels:
            name, device = f"{stage.writes}-{records.recipe8(own)}", _device(pool)
            where = (audio, own, self.out.place, weights.name, weights.sha256, device, recipe.threads)
            jobs.append(Job(stage, name, *where, run.cache_gb))
        return jobs

    @property
    def registry(self) -> Registry:
        if self._registry is None:
            current = {job.stage.writes: (job.column, job.recipe) for job in self.jobs()}
            self._registry = registry.write(self.out, self.known, self.config.recipe, current)
        return self._registry

    def done(self, column: str) -> set[str]:
        """Finished shards of a column, listed once; a chain adds its own."""
        if column not in self._done:
            self._done[column] = records.finished(self.out, column)
        return self._done[column]

    def pending(self) -> list[str]:
        """Shards, in plan order, with an unfinished column or not yet audited; from one listing a column."""
        done = self.complete([job.column for job in self.jobs()])
        return [name for name, _ in self.shards if name not in done]

    def complete(self, columns: Sequence[str]) -> set[str]:
        """Shards that are finished in each of these columns and audited. Those that older versions gathered
        were audited too."""
        if (own := tuple(columns)) not in self._marked:
            self._marked[own] = audit.audited(self.out, own) | gathering.gathered(self.out, own)
        return set.intersection(*map(self.done, own)) & self._marked[own]

    def _note(self, row: dict, jobs: list[Job]) -> None:
        """What the chain has done of a shard."""
        for job in jobs:
            if row.get(job.stage.name) in ("finished", "skipped"):
                self.done(job.column).add(row["shard"])
        marked = self._marked.get(tuple(job.column for job in jobs))
        if marked is not None and row.get("audit") == "finished":
            marked.add(row["shard"])

    def check_space(self) -> None:
        """Refuse a run whose output cannot fit."""
        free, need, sizes = self.out.free_bytes(), 0.0, bytes_per_s(self.config.recipe)
        for job in self.jobs():
            done = self.done(job.column)
            need += sizes[job.stage.writes] * sum(s for name, s in self.shards if name not in done)
        if free is not None and need > free:
            raise ValueError(
                f"{self.out.root} has {shown(free)} free, this run writes about {shown(need)}: free some "
                f"space, choose another OUT (--set run.out=…) or leave out (run.exclude) some of the longest "
                f"recordings: {self._longest(sum(sizes.values()))}"
            )

    def _longest(self, bytes_per_s: int) -> str:
        """The recordings that weigh most, by the plan."""
        with self.out.fetched("plan.parquet") as path:
            live = catalog.live(catalog.read_plan(path, ["path", "size", "duration_s", "tombstone"]))
        seconds = catalog.likely_seconds(live, self.config.recipe.decode.max_recording_h)
        most = np.argsort(-seconds, kind="stable")[:LONGEST].tolist()
        paths = live["path"].take(most).to_pylist()
        weights = [f"{seconds[i] / 3600:.2f} h, {shown(seconds[i] * bytes_per_s)}" for i in most]
        return "; ".join(f"{printable(p)} ({weight})" for p, weight in zip(paths, weights, strict=True))

    def compute(self, refit: bool, fit_only: bool = False) -> None:
        """On Ray or in plain processes: check the nodes, fit the teacher if it is new, run the chain."""
        self.progress.status(f"starting {self.runner.NAME}")
        with self.runner.session(self.config.run.cpus, type(self.config.recipe.codes).__module__) as session:
            kinds = None
            if not self.config.run.mixed_devices:
                kinds = self.kinds()
            check = self.runner.check_nodes(self.out, list(self.config.run.audio), kinds)
            session = session._replace(check=check)
            self.sweep()
            whole = replace(self, weights=self.weights or teachers.Weights(None, None))
            specs = whole.specs(whole.jobs(), audited=True)
            check_fits(specs, session)
            if self.weights is None:
                self.fit(session, refit)
            pending = [] if fit_only else self.pending()
            if pending and not self.failed:
                self.registry  # noqa: B018 - written before the first shard, for `status`
                self.chain(session, self.jobs(), pending, audited=True)
        self.sweep()  # files of workers that died during this run

    def kinds(self) -> Kinds:
        """Of machine, that made the columns in use: of a run that was killed before its tables, by one record
        of each column."""
        columns = tuple(job.column for job in self.jobs())
        if found := recorded(self.out, columns):
            return found
        for column in filter(self.done, columns):
            facts = records.read(self.out, column, min(self.done(column))).facts
            for part, kind in facts.get("machine", {}).items():
                found.setdefault(part, set()).add(kind)
        return found

    def fit(self, session: Session, refit: bool) -> None:
        """Decode the shards a fit needs, fit, and store: once for this OUT and recipe."""
        recipe, (audio, audio8) = self.config.recipe, self.audio
        name, chosen = recipe.codes.name, teachers.fit_shards(recipe, self.planned, refit)
        done = self.done(audio)
        self.chain(session, self.jobs()[:1], [s for s in chosen if s not in done], audited=False)
        if self.failed:
            return
        pool, started = self.config.run.pools.codes, time.time()

        def show(event: dict) -> None:
            values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in event.items() if v is not None}
            text = "  ".join(f"{k} {v}" for k, v in values.items())
            self.progress.status(f"fitting {name} on {len(chosen)} shards: {text}", "waits" in event)
            self.progress.log("fit", **event)

        cpus = min(recipe.fit_threads, max(1, int(session.node_cpus)))
        what = (self.out.place, recipe, audio, audio8, chosen, _device(pool))
        work = self.runner.run_one_reporting
        self.weights = work(teachers.fit, show, *what, cpus=cpus, gpus=pool.gpus)
        self.progress.say(
            f"fitted {name} on {len(chosen)} shards in {time.time() - started:.0f} s: "
            f"{self.out.path(self.weights.name)}"
        )

    def specs(self, jobs: list[Job], audited: bool) -> list[StageSpec]:
        """The stages of a chain and what one worker of each reserves."""
        pools, workers = self.config.run.pools, []
        for job in jobs:
            pool, threads = getattr(pools, job.stage.name), self.config.recipe.threads
            cpus = pool.cpus if job.stage.name == "decode" else max(pool.cpus, threads)
            needs = Needs(cpus, pool.gpus, pool.memory_gb)
            workers.append((job.stage.name, partial(ShardWorker, job), needs, pool, job.stage.cpu_s))
        if audited:
            opener = partial(audit.AuditWorker, jobs[0].out, tuple(job.column for job in jobs))
            needs = Needs(pools.audit.cpus, 0, pools.audit.memory_gb)
            workers.append(("audit", opener, needs, pools.audit, audit.CPU_S))
        return [StageSpec(n, make, needs, pool.max_workers, cpu_s) for n, make, needs, pool, cpu_s in workers]

    def chain(self, session: Session, jobs: list[Job], pending: list[str], audited: bool) -> None:
        """Stream these shards through the stages; a failed one is noted, a fatal failure ends the run."""
        if not pending:
            return
        run, specs = self.config.run, self.specs(jobs, audited)
        self.progress.start({spec.name: len(pending) for spec in specs})
        with self.out.fetched("plan.parquet") as path:
            planned = catalog.ShardRows(path)
        rows = self.runner.run_chain(specs, pending, session, run.attempts, self.progress.event, planned)
        heard, most = Counter(), most_failed(run.max_failed_shards, len(pending))
        tables = Tables(self.out, planned.recordings, self.progress.attempts)
        with contextlib.closing(rows), tables:
            for row in rows:
                tables.add(row)
                self._note(row, jobs)
                heard.update({name: row.get(name, 0) for name in ("recordings", "rejected")})
                self.stopped = too_many(run, "shards so far", heard["rejected"], heard["recordings"])
                if self.stopped:
                    break
                if "failed" in row:
                    self.failed[row["shard"]] = f"{row['failed']}: {row['error']}"
                    if self.out.is_gone():
                        # `label` gives the message; every other shard would fail alike
                        raise FileNotFoundError(self.out.base)
                    if row["fatal"] or len(self.failed) > most:
                        break
        self.progress.stop()

    def gather(self, live: pa.Table, refused: pa.Array, whole: bool) -> None:
        """Add finished shards to the tables of indexes and statistics, where those lack them, and put the
        tables' parts together: if they are worth it, or `whole`."""
        out, columns, recordings = self.out, self.registry.names, live["recording"].combine_chunks()
        done = self.complete(columns) - set(self.failed)
        missing, stale = gathering.ungathered(out, columns, live, refused)
        new = (done - gathering.gathered(out, columns)) | (missing & done)
        gathering.gather(out, columns, sorted(new), recordings, self.progress.attempts)
        if stale or gathering.due(out, whole):
            gathering.compact(out, recordings)

    def sweep(self) -> None:
        """Remove the attempts and end the uploads of killed runs; the lock excludes other live runs."""
        if self.part:  # others work beside it
            return
        folders = [records.folder(column) for column in self.out.names("columns")]
        for folder in (*folders, "", teachers.FOLDER):
            self.out.sweep(folder)
        if not self.out.is_local:
            try:
                if count := objects.abort_uploads(self.out.base):
                    self.progress.log("aborted-uploads", count=count)
            except OSError as error:  # a right that labels themselves do not need
                self.progress.log("aborted-uploads", error=str(error))


def most_failed(limit: float, pending: int) -> float:
    """Shards that may fail before a run stops."""
    return limit if limit >= 1 or not limit else max(FEW, limit * pending)


def too_many(run: recipes.Run, where: str, rejected: int, recordings: int) -> str:
    """Why a run stops that rejects more than it may; empty before there is enough to judge."""
    if recordings < ENOUGH or rejected <= run.max_rejected_share * recordings:
        return ""
    return (
        f"stopped: {rejected} of {recordings} recordings of the {where} were rejected, more than "
        f"run.max_rejected_share {run.max_rejected_share:.1%}; raise it to label the others all the same"
    )


def _device(pool: recipes.Pool) -> str:
    return "cuda" if pool.gpus else "cpu"
