"""Training: the pinned shards become a model. `Training.run` is the loop; read it first. Every rank runs it
alike; what one knows alone (losses, clock, a signal) is agreed on in one exchange an update."""

import contextlib
import os
import time
from collections import defaultdict
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
from stages.pretrain.run.held_out_probes import probe
from stages.pretrain.run.loss_guard import LossGuard, given_up
from stages.pretrain.run.preflight import check_memory, matrix_peak
from stages.pretrain.run.run_dir import RunDir
from stages.pretrain.run.run_log import RunLog
from stages.pretrain.run.stopping import Stopping
from stages.pretrain.run.validation import validate
from stages.pretrain.run.watchdog import Watchdog
from stages.pretrain.run.world import World, joined
from stages.signal.online import OnlineCqt

RESTORES = 5  # from one checkpoint, before a run is given up
DONE, STOPPED = "done", "stopped"


def train(config: Config, say: Callable[[str], None] = print) -> str:
    """Train until the last update or a requested stop; returns which. The same call goes on from there.
    ValueError, on every rank, for what a user can fix; OSError when a checkpoint cannot be written."""
    with joined(timeout_s=60 * config.run.stall_minutes + 60) as world:
        torch.set_num_threads(config.run.threads or max(1, len(os.sched_getaffinity(0)) // world.local_size))
        run_dir = RunDir(config, world)
        pinned = world.on_rank_0(pin, config.data, run_dir.previous(), set(config.resume.allow))
        pinned.require(config.optim.global_batch)
        check_target(config, pinned.cqt)
        run_log = RunLog(config, world, run_dir, say)
        with contextlib.closing(Training(config, world, run_dir, pinned, run_log)) as training:
            training.begin()
            return training.run() if training.state.update < config.optim.updates else DONE


class Training:
    def __init__(self, config: Config, world: World, run_dir: RunDir, pinned: Pinned, run_log: RunLog):
        self.config, self.world, self.run_dir = config, world, run_dir
        self.pinned, self.run_log, self.dtype = pinned, run_log, DTYPES[config.engine.precision]
        torch.manual_seed(config.run.seed)  # initial weights are the same on every rank
        self.model = Mert(config.model, config.objective, *pinned.targets).to(world.device)
        self.target = self.model.cqt_head.target if self.model.cqt_head else None
        online = pinned.cqt is not None and config.data.cqt == "online"
        self.online = OnlineCqt(magnitude=pinned.cqt.magnitude, device=world.device) if online else None
        self.frames = config.model.frames(config.data.samples)
        self.update_frames = config.masking.masked_frames(self.frames) * config.optim.global_batch
        data = (pinned, config.data, config.masking, config.mixture, self.frames)
        self.loader = Loader(*data, config.engine.micro_batch, world.rank, world.size)
        self.loss_guard, self.replaced, self.restored = LossGuard(config.guard), 0, []
        self.best = None  # held-out loss, update
        place = config.checkpoints.at or str(run_dir.path / "checkpoints")
        self.checkpoints = Checkpoints(place, config.checkpoints.keep, world)
        self.watchdog = Watchdog(run_dir.path / "stacks", world.rank, 60 * config.run.stall_minutes)
        self.stopping = Stopping(run_dir.path / "stop")

    def begin(self) -> None:
        config, world, say = self.config, self.world, self.run_log.say
        for text in self.pinned.describe():
            say(text)
        own = (self.pinned.fingerprint, config.run.seed, config.optim.global_batch)
        self.state, newest = State(*own), self.checkpoints.newest()
        head_start = config.objective.cqt_start
        if newest:
            saved, head_start = State.from_json(self.checkpoints.state(newest)["state"]), "default"
            self.state = saved.resumed(*own, set(config.resume.allow))
        elif config.run.init_from:
            imported = load_into(self.model, config.run.init_from)
            head_start = "default" if CQT_HEAD in imported.taken else head_start
            say(str(imported))
        if self.state.update >= config.optim.updates:
            more = "for more, raise optim.updates with --set resume.allow=optim, or choose another run.name"
            return say(f"this run is finished ({self.state.update} updates in {self.run_dir.path}); {more}")
        self.micro_batches = self.loader.micro_batches(self.state)
        peak = matrix_peak(world.device, self.dtype)
        crops = map(self._on_device, self.loader.sample(config.watch.baseline_crops))
        baselines, head = world.on_rank_0(
            baselines_and_start, self.model, crops, self.pinned.codes, head_start, self.dtype
        )
        self.baselines = baselines.to(world.device)
        if self.model.cqt_head:
            self.model.cqt_head.start(*head)
        largest = self._on_device(next(self.loader.read(self.state)))
        check_memory(self.model, largest, self.dtype, world, config.engine.copies(world.size))
        self.engine = Engine(self.model, config.engine, config.optim, world, self.micro_batches)
        seed_generators(config.run.seed, self.state.update, world)
        if newest:
            self._restore(newest)
        self.run_dir.write_start(self.pinned.to_json())
        self.run_dir.cut_metrics(self.state.update)
        self.run_log.start(self.model, self.pinned, self.state.update, self.micro_batches, peak, newest)
        self.stopping.begin(world)

    def run(self) -> str:
        config, engine, frames, say = self.config, self.engine, self.update_frames, self.run_log.say
        stream, saved_at, last = self.loader.stream(self.state), time.monotonic(), config.optim.updates
        while self.state.update < last:
            began, place, lr = time.monotonic(), self.state, config.optim.lr_at(self.state.update)
            draw = self.model.draw(config.run.seed, place.update)

            sums = defaultdict(float)
            for number, batch in enumerate(self._micro_batches(stream), 1):
                loss, terms = engine.forward(batch, *draw)
                for name, value in (terms | self._baseline_sums(batch)).items():
                    sums[name] += value
                if number < self.micro_batches:
                    engine.backward(loss, frames)

            # All ranks agree before the last backward pass: DeepSpeed reduces gradients in it, and every
            # ZeRO stage skips its step if they are not finite. The host reads what was agreed on afterwards.
            minutes = (time.monotonic() - saved_at) / 60
            save = self.world.is_rank_0 and minutes > config.checkpoints.every_minutes
            agreed = self.world.agree(sums | {"stop": self.stopping.requested(), "save": save})
            engine.backward(self.loss_guard.judged(loss, agreed.there["loss"] / frames), frames)
            mean_loss = float((sums := agreed.read())["loss"]) / frames
            skip, loss_scale = self.loss_guard.bad(mean_loss), engine.loss_scale.value
            grad_norm, applied = engine.step(lr, skip)
            self.state = place.advanced(self.pinned.samples_per_epoch)
            update = self.state.update

            # once in a while: samples could not be read, the update was skipped
            if sums["replaced"]:
                self.replaced += self.run_log.replaced(update, self.failed)
            overflow = not applied and not skip and loss_scale != 1.0  # no bad update
            if not applied and not overflow:
                self._log_skipped(place, mean_loss)
            too_many = self.loss_guard.note(mean_loss, not applied, overflow)
            facts = {"epoch": place.epoch, "grad_norm": grad_norm, "lr": lr, "scale": loss_scale}
            facts |= {"skipped": self.loss_guard.skipped, "replaced": self.replaced}
            self.run_log.update(update, sums, frames, time.monotonic() - began, self.waited_s, facts)
            self.watchdog.beat()

            # once in a while: restore the last checkpoint, validate, save, stop
            if too_many:
                stream = self._recover()
                continue
            done, stop = update == last, bool(sums["stop"])
            if done or update % config.watch.validate_every == 0:
                self._validate()
            self._probe(update)
            if done or stop or sums["save"] or update % config.checkpoints.every_updates == 0:
                self._save(wait=done or stop)
                saved_at = time.monotonic()
            if stop and not done:
                say(f"stopped after update {update}; the same command goes on from there")
                return STOPPED
        self.run_log.log("end", update=last)
        say(f"finished: {last} updates, in {self.run_dir.path}")
        return DONE

    def _micro_batches(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Counts the seconds waited, and lists samples that failed."""
        self.waited_s, self.failed = 0.0, []
        for _ in range(self.micro_batches):
            began = time.monotonic()
            batch = next(stream)
            self.waited_s += time.monotonic() - began
            self.failed += batch.replaced
            yield self._on_device(batch)

    def _on_device(self, batch: Batch) -> Batch:
        batch = batch.to(self.world.device)
        if self.online:
            batch = replace(batch, cqt_BLF=self.online(batch.context_BN), context_BN=None)
        return batch.stacked(self.config.model.stack)

    def _baseline_sums(self, batch: Batch) -> dict[str, torch.Tensor | int]:
        sums = metrics.further_sums(batch, self.pinned.codes, self.baselines, self.target)
        return sums | {"replaced": len(batch.replaced), "samples": metrics.sample_sum(batch)}

    def _log_skipped(self, place: State, loss: float) -> None:
        """Name the samples that are not finite: the micro-batches are read again."""
        with self.engine.evaluating() as model:
            batches = map(self._on_device, self.loader.read(place))
            keys = [key for batch in batches for key in model.non_finite_keys(batch)]
        self.run_log.skipped(self.state.update, loss, keys)

    def _recover(self) -> Iterator[Batch]:
        """Restore the last checkpoint and go past the data since, or stop."""
        guard = self.config.guard
        self.checkpoints.finish()
        name = self.checkpoints.newest() if guard.then == "restore" else None
        self.restored.append(name)
        if name is None or self.restored.count(name) > RESTORES:
            tried = f"{name} was restored {RESTORES} times" if name else None
            raise given_up(guard, self.state.update, tried, self.run_dir.path / "metrics.jsonl")
        saved = State.from_json(self._restore(name)["state"])
        self.loss_guard.in_a_row = 0
        self.state = saved.skip_to(self.state, self.pinned.samples_per_epoch)
        self.run_dir.cut_metrics(self.state.update)
        self.run_log.restored(name, self.state)
        return self.loader.stream(self.state)

    def _validate(self) -> None:
        batches, resamplings = map(self._on_device, self.loader.validation()), self.config.watch.bootstrap
        with self.engine.evaluating() as model:
            found = validate(model, batches, self.baselines, self.world, resamplings, self.config.run.seed)
        self.watchdog.beat()
        if found is not None:
            if self.best is None or found["loss"] < self.best[0]:
                self.best = (found["loss"], self.state.update)
            self.run_log.valid(self.state.update, found)

    def _probe(self, update: int) -> None:
        """Every `watch.probe_every` updates."""
        every = self.config.watch.probe_every
        if not every or update % every:
            return
        with self.engine.evaluating() as model:
            found = probe(model, map(self._on_device, self.loader.validation()), self.world)
        self.watchdog.beat()
        if found is not None:
            self.run_log.valid(self.state.update, found, "probe")

    def _save(self, wait: bool) -> None:
        update, best = self.state.update, self.best
        state = {"update": update, "state": self.state.to_json(), "judge": self.loss_guard.to_json()}
        state |= {"best": best, "best_update": best and best[1], "replaced": self.replaced}
        self.run_log.log("checkpoint", update=update, path=self.checkpoints.save(self.engine, state, wait))
        self.run_log.draw()

    def _restore(self, name: str) -> dict:
        saved = self.checkpoints.restore(self.engine, name)
        self.loss_guard, self.replaced = LossGuard(self.config.guard, **saved["judge"]), saved["replaced"]
        self.best = tuple(saved["best"]) if saved["best"] else None
        return saved

    def close(self) -> None:
        self.loader.close()
        self.watchdog.stop()
        self.stopping.restore()
