"""Training: the pinned shards become a model. Read `train` first; the rest of this file is its steps.

    join the ranks → open RUN → pin the data → build the model → restore → update, validate, checkpoint, …

Every rank runs this file alike. What one rank alone decides (its clock, a signal) is agreed on at the
boundary of an update, in the same exchange that adds up the losses.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from stages.pretrain.config import Config, check_target
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.index import Pinned
from stages.pretrain.data.loader import Loader
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.state import State
from stages.pretrain.model.mert import Mert
from stages.pretrain.model.published import CQT_HEAD, load_into
from stages.pretrain.run import metrics
from stages.pretrain.run.checkpoint import Checkpoints, seed_generators
from stages.pretrain.run.cqt_start import baselines_and_start
from stages.pretrain.run.engine import DTYPES, Engine
from stages.pretrain.run.loss_guard import LossGuard, given_up
from stages.pretrain.run.preflight import matrix_peak, try_largest
from stages.pretrain.run.run_dir import RunDir
from stages.pretrain.run.run_log import RunLog
from stages.pretrain.run.stopping import Stopping
from stages.pretrain.run.validation import validate
from stages.pretrain.run.watchdog import Watchdog
from stages.pretrain.run.world import World, joined
from stages.signal.online import OnlineCqt

RESTORES = 5  # from one checkpoint, before a run is given up
DONE, STOPPED = "done", "stopped"
FURTHER = "for more, raise optim.updates with --set resume.allow=optim, or choose another run.name"


def train(config: Config, say: Callable[[str], None] = print) -> str:
    """Train until the last update, or until asked to stop; the same call goes on from there. Returns done or
    stopped.

    Raises ValueError for what a user can mend, on every rank alike; OSError when a checkpoint cannot be
    written.
    """
    with joined(timeout_s=60 * config.run.stall_minutes + 60) as world:
        torch.set_num_threads(config.run.threads or max(1, len(os.sched_getaffinity(0)) // world.local_size))
        run_dir = RunDir(config, world)
        before = run_dir.previous()
        pinned = world.on_rank_0(pin, config.data, before, set(config.resume.allow))
        pinned.require(config.optim.global_batch)
        check_target(config, pinned.cqt)
        with contextlib.closing(
            Training(config, world, run_dir, pinned, RunLog(config, world, run_dir, say))
        ) as training:
            training.begin()
            return training.run()


class Training:
    """One run on one rank, from its model to its last update."""

    def __init__(self, config: Config, world: World, run_dir: RunDir, pinned: Pinned, run_log: RunLog):
        self.config, self.world, self.run_dir, self.pinned, self.run_log = (
            config,
            world,
            run_dir,
            pinned,
            run_log,
        )
        torch.manual_seed(config.run.seed)  # initial weights are the same on every rank
        self.model = Mert(config.model, config.objective, pinned.codes, pinned.cqt_bins).to(world.device)
        self.target = self.model.cqt_head.target if self.model.cqt_head else None
        online = pinned.cqt is not None and config.data.cqt == "online"
        self.online = OnlineCqt(magnitude=pinned.cqt.magnitude, device=world.device) if online else None
        self.frames = config.model.frames(config.data.samples)
        self.update_frames = config.masking.masked_frames(self.frames) * config.optim.global_batch
        self.loader = self._own_loader()
        self.loss_guard = LossGuard(config.guard)
        self.best: tuple[float, int] | None = None  # held-out loss, update
        self.replaced, self.restored = 0, []
        self.checkpoints = Checkpoints(
            config.checkpoints.at or str(run_dir.path / "checkpoints"), config.checkpoints.keep, world
        )
        self.watchdog = Watchdog(run_dir.path / "stacks", world.rank, 60 * config.run.stall_minutes)
        self.stopping = Stopping(run_dir.path / "stop")

    def close(self) -> None:
        self.loader.close()
        self.watchdog.stop()
        self.stopping.restore()

    def _loader(self, rank: int, ranks: int, micro_batch: int, workers: int | None = None) -> Loader:
        data = self.config.data if workers is None else replace(self.config.data, workers=workers)
        return Loader(
            self.pinned, data, self.config.masking, self.config.mixture, self.frames, micro_batch, rank, ranks
        )

    def _own_loader(self, workers: int | None = None) -> Loader:
        return self._loader(self.world.rank, self.world.size, self.config.engine.micro_batch, workers)

    def begin(self) -> None:
        """Build the engine, restore the newest checkpoint, or begin anew; then say where the run stands."""
        config, world = self.config, self.world
        for text in self.pinned.describe():
            self.run_log.say(text)
        newest = self.checkpoints.newest()
        init_from = None if newest else config.run.init_from
        if taken := init_from and load_into(self.model, init_from):
            self.run_log.say(str(taken))
        saved = world.on_rank_0(self.checkpoints.state, newest) if newest else None
        own = (self.pinned.fingerprint, config.run.seed, config.optim.global_batch)
        self.state = (
            State.from_json(saved["state"]).resumed(*own, set(config.resume.allow)) if saved else State(*own)
        )
        if self.state.update >= config.optim.updates:
            return
        self.micro_batches = self.loader.micro_batches(self.state)
        peak = matrix_peak(world.device, DTYPES[config.engine.precision])
        self.baselines = self._baselines(bool(newest or taken and CQT_HEAD in taken.taken))
        self._try_largest()
        self.engine = Engine(self.model, config.engine, config.optim, world, self.micro_batches)
        seed_generators(config.run.seed, self.state.update, world)
        if newest:
            self._restore(newest)
        if world.is_rank_0:
            self.run_dir.write_start(self.pinned.to_json())
            self.run_dir.cut_metrics(self.state.update)
        self.run_log.start(self.model, self.pinned, self.state.update, self.micro_batches, peak, newest)
        self.stopping.begin(world)

    def _restore(self, name: str) -> None:
        saved = self.checkpoints.restore(self.engine, name)
        self.loss_guard, self.replaced = LossGuard(self.config.guard, **saved["judge"]), saved["replaced"]
        self.best = tuple(saved["best"]) if saved["best"] else None

    def _baselines(self, has_head: bool) -> metrics.Baselines:
        """Rank 0 counts code frequencies and CQT means of some training crops, and finds where a CQT head
        without values starts."""
        found = None
        if self.world.is_rank_0:
            place = State(
                self.pinned.fingerprint,
                0,
                min(self.config.watch.baseline_crops, self.pinned.samples_per_epoch),
            )
            how = "default" if has_head else self.config.objective.cqt_start
            with contextlib.closing(self._loader(0, 1, min(place.global_batch, 16), workers=0)) as loader:
                batches = itertools.islice(
                    map(self._ready, loader.stream(place)), loader.micro_batches(place)
                )
                found = baselines_and_start(
                    self.model, batches, self.pinned.codes, how, DTYPES[self.config.engine.precision]
                )
        baselines, head = self.world.broadcast(found)
        if self.model.cqt_head:
            self.model.cqt_head.start(*head)
        return baselines.to(self.world.device)

    def _try_largest(self) -> None:
        """Out of memory shows here, in the first minute, not at the first update."""
        engine, world = self.config.engine, self.world
        with contextlib.closing(self._own_loader(workers=0)) as loader:
            batch = self._ready(next(loader.stream(self.state)))
            try_largest(self.model, batch, DTYPES[engine.precision], world, engine.copies(world.size))

    def run(self) -> str:
        """Update until the end, or until asked to stop; returns which."""
        last, watch, saving = self.config.optim.updates, self.config.watch, self.config.checkpoints
        if self.state.update >= last:
            self.run_log.say(
                f"this run is finished ({self.state.update} updates in {self.run_dir.path}); {FURTHER}"
            )
            return DONE
        stream, saved_at = self.loader.stream(self.state), time.monotonic()
        while self.state.update < last:
            stop, due, trouble = self._update(stream, time.monotonic() - saved_at > 60 * saving.every_minutes)
            if trouble:
                stream = self._recover()
                continue
            done = self.state.update == last
            if done or self.state.update % watch.validate_every == 0:
                self._validate()
            if done or stop or due or self.state.update % saving.every_updates == 0:
                self._save(wait=done or stop)
                saved_at = time.monotonic()
            if stop and not done:
                self.run_log.say(
                    f"stopped after update {self.state.update}; the same command goes on from there"
                )
                return STOPPED
        self.run_log.log("end", update=last)
        self.run_log.say(f"finished: {last} updates, in {self.run_dir.path}")
        return DONE

    def _update(self, stream: Iterator[Batch], due: bool) -> tuple[bool, bool, bool]:
        """One update; returns whether to stop, whether a checkpoint is due, and whether bad updates came in a
        row."""
        began, epoch, rate = time.monotonic(), self.state.epoch, self.config.optim.lr_at(self.state.update)
        before, drawn = self.state, self.model.draw(self.config.run.seed, self.state.update)
        flags = (self.stopping.asked(), due and self.world.is_rank_0)
        self.waited_s, self.failed = 0.0, []
        done = self.engine.update(
            self._micro_batches(stream), self.update_frames, rate, drawn, self.loss_guard.bad, flags
        )
        loss = float(done.sums["loss"]) / self.update_frames
        # fp16: halves its scale, blames nobody
        overflow = done.skipped and done.scale != 1.0 and not self.loss_guard.bad(loss)
        trouble = self.loss_guard.note(loss, done.skipped, overflow)
        self.state = self.state.advanced(self.pinned.samples_per_epoch)
        if done.sums["replaced"]:
            self.replaced += self.run_log.replaced(self.state.update, self.failed)
        if done.skipped and not overflow:
            self._log_non_finite(before, loss)
        counters = {
            "skipped": self.loss_guard.skipped,
            "replaced": self.replaced,
            "micro_batches": self.micro_batches * self.world.size,
        }
        self.run_log.update(
            self.state.update,
            epoch,
            done,
            self.update_frames,
            rate,
            time.monotonic() - began,
            self.waited_s,
            counters,
        )
        self.watchdog.beat()
        return *done.flags, trouble

    def _micro_batches(self, stream: Iterator[Batch]):
        """This rank's micro-batches of one update, each with the sums of what its loss is compared with."""
        for _ in range(self.micro_batches):
            began = time.monotonic()
            batch = next(stream)
            self.waited_s += time.monotonic() - began
            self.failed += batch.replaced
            batch = self._ready(batch)
            further = metrics.further_sums(batch, self.pinned.codes, self.baselines, self.target)
            yield (
                batch,
                further
                | {"replaced": torch.tensor(len(batch.replaced)), "samples": metrics.sample_sum(batch)},
            )

    def _ready(self, batch: Batch) -> Batch:
        batch = batch.to(self.world.device)
        if self.online is not None:
            batch = replace(batch, cqt_BLF=self.online(batch.context_BN), context_BN=None)
        return batch

    def _log_non_finite(self, before: State, loss: float) -> None:
        """Name the samples that are not finite: the update's micro-batches are read again, one at a time."""
        with self.engine.evaluating() as model, contextlib.closing(self._own_loader(workers=0)) as loader:
            stream = loader.stream(before)
            keys = [
                key
                for _ in range(self.micro_batches)
                for key in model.non_finite_keys(self._ready(next(stream)))
            ]
        self.run_log.skipped(self.state.update, loss, keys)

    def _recover(self) -> Iterator[Batch]:
        """After too many bad updates in a row: stop, or go back to the last good weights and past the data
        since."""
        self.checkpoints.finish()
        name = self.checkpoints.newest() if self.config.guard.then == "restore" else None
        self.restored.append(name)
        if name is None or self.restored.count(name) > RESTORES:
            raise given_up(
                self.config.guard,
                self.state.update,
                f"{name} was gone back to {RESTORES} times" if name else None,
                self.run_dir.path / "metrics.jsonl",
            )
        behind = State.from_json(self.world.on_rank_0(self.checkpoints.state, name)["state"])
        while (behind.epoch, behind.consumed) != (self.state.epoch, self.state.consumed):
            behind = behind.skip(1, self.pinned.samples_per_epoch)
        self.state = behind
        self._restore(name)
        self.loss_guard.in_a_row = 0
        if self.world.is_rank_0:
            self.run_dir.cut_metrics(self.state.update)
        self.run_log.say(
            f"restored {name}; went past the data up to sample {self.state.consumed} of epoch "
            f"{self.state.epoch}"
        )
        self.run_log.log("restored", update=self.state.update, path=name, skipped=list(self.state.skipped))
        return self.loader.stream(self.state)

    def _validate(self) -> None:
        with self.engine.evaluating() as model:
            found = validate(
                model,
                map(self._ready, self.loader.validation()),
                self.baselines,
                self.world,
                self.config.watch.bootstrap,
                self.config.run.seed,
            )
        if found is not None:
            if self.best is None or found["loss"] < self.best[0]:
                self.best = (found["loss"], self.state.update)
            self.run_log.valid(self.state.update, found)
        self.watchdog.beat()

    def _save(self, wait: bool) -> None:
        state = {
            "update": self.state.update,
            "state": self.state.to_json(),
            "judge": self.loss_guard.to_json(),
            "best": self.best,
            "best_update": self.best[1] if self.best else None,
            "replaced": self.replaced,
        }
        self.run_log.log(
            "checkpoint", update=self.state.update, path=self.checkpoints.save(self.engine, state, wait)
        )
        self.run_log.draw()
