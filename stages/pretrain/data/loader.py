"""Endless micro-batches from any place of the order on, read ahead by worker processes. Nothing is drawn from
a generator or communicated: each rank computes the same order."""

import contextlib
import itertools
import shutil
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stages.pretrain.data import counter_rng
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.crop_index import held_out
from stages.pretrain.data.crops import Reader
from stages.pretrain.data.index import Pinned
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from stages.signal.rates import HOP_SAMPLES

SHARED_MEMORY = "/dev/shm"
GRACE_S = 120  # of a worker after SIGTERM
FEW = 1000  # samples before the share of bad ones is judged
SAMPLE_CLIPS = 16


class TooManyBad(ValueError):
    """More than data.max_bad_share."""


class Loader:
    """One rank's share of the data. `frames`: model frames of a crop."""

    def __init__(
        self,
        pinned: Pinned,
        data: Data,
        masking: Masking,
        mixture: Mixture,
        frames: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
    ):
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: expected at least 1 sample")
        assert 0 <= rank < world, (rank, world)
        masking.masked_frames(frames)  # too short a crop is refused here, not in a worker
        if not pinned.there:  # pinned by a rank of another node
            pinned = pin(data, pinned.to_json())
        self.pinned, self.data, self.micro_batch = pinned, data, micro_batch
        self.rank, self.world, self._made = rank, world, (pinned, data, masking, mixture, frames)
        self._reader, self._streams = None, []
        self.seen, self.bad = 0, 0  # samples, and those of them that were replaced
        self._check_shared_memory()

    def micro_batches(self, state: State) -> int:
        """Of this rank in one update: at most `micro_batch` samples each, equal up to one. ValueError: too
        small a global batch for the ranks, or an epoch shorter than it."""
        total, world = state.global_batch, self.world
        self.pinned.require(total)
        least, count = total // world, -(-total // (world * self.micro_batch))
        if least < count:
            raise ValueError(
                f"global_batch is {total}, micro_batch {self.micro_batch} on {world} ranks: some ranks would "
                f"have {least} samples for {count} micro-batches; raise the global batch, or use fewer ranks"
            )
        return count

    def stream(self, state: State) -> Iterator[Batch]:
        """From that place on, without end. Raises `TooManyBad`."""
        batches = self._follow(self._stream(state))
        self._streams.append(batches)
        return batches

    def _stream(self, state: State) -> "_Stream":
        return _Stream(self._made, self.micro_batches(state), self.rank, self.world, state)

    def read(self, state: State) -> Iterator[Batch]:
        """One update's, read by this process."""
        return self._stream(state).first_update()

    def sample(self, crops: int) -> Iterator[Batch]:
        """Training crops, the same for any seed and rank, read by this process."""
        state = State(self.pinned.fingerprint, 0, min(crops, self.pinned.samples_per_epoch))
        return _Stream(self._made, -(-state.global_batch // SAMPLE_CLIPS), 0, 1, state).first_update()

    def _follow(self, dataset: "_Stream") -> Iterator[Batch]:
        most = self.data.max_bad_share
        for batch in _loading(dataset, self.data):
            self.seen += len(batch.keys)
            self.bad += len(batch.replaced)
            if self.bad > most * max(self.seen, FEW):
                raise TooManyBad(
                    f"{self.bad} of {self.seen} samples could not be read, more than data.max_bad_share "
                    f"{most}; last {batch.replaced[-1]}: `overtone verify` names what is damaged"
                )
            yield batch

    def validation(self) -> Iterator[Batch]:
        """The same crops and masks every time, without mixture. Every rank gets the same number of
        micro-batches (ZeRO 3 needs that): rows that fill up the last repeat a crop with an empty mask."""
        self._reader = self._reader or Reader(*self._made)
        crops, key = held_out(self.pinned, self.data), counter_rng.key(counter_rng.VALIDATION, 1)
        total = len(crops.row)
        for first in range(0, total, self.world * self.micro_batch):
            own = first + self.rank + self.world * np.arange(self.micro_batch)
            shown, own = own < total, own % total
            batch = self._reader.fixed(crops, own, counter_rng.keys(key, own), shown)
            batch.positions = own.tolist()
            yield batch

    def close(self) -> None:
        while self._streams:
            self._streams.pop().close()
        if self._reader is not None:
            self._reader.tars.close()
            self._reader = None

    def _check_shared_memory(self) -> None:
        """Workers die by SIGBUS when /dev/shm is too small, as in many containers."""
        data, bins = self.data, self.pinned.cqt_bins or 0
        crop_bytes = data.samples * 8 + data.samples // HOP_SAMPLES * 4 * bins
        wanted = crop_bytes * self.micro_batch * data.workers * (data.prefetch + 1)
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(SHARED_MEMORY).free
            if wanted > free:
                raise ValueError(
                    f"data.workers is {data.workers} and data.prefetch {data.prefetch}: their micro-batches "
                    f"take {wanted / 2**20:.0f} MiB of {SHARED_MEMORY}, {free / 2**20:.0f} MiB are free: "
                    "lower them, or enlarge it"
                )


class _Stream(IterableDataset):
    """Worker w of W makes every W-th micro-batch; the data loader takes them in turn."""

    def __init__(self, made: tuple, count: int, rank: int, world: int, state: State):
        self.made, self.count, self.state = made, count, state
        self.places = np.array_split(np.arange(rank, state.global_batch, world), count)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        reader = Reader(*self.made)
        try:
            plans = (reader.plan(*work) for work in self._work(first, step, reader.pinned.samples_per_epoch))
            reader.ahead(now := next(plans))
            for following in plans:
                reader.ahead(following)
                yield reader.batch(now)
                now = following
        finally:
            reader.tars.close()

    def first_update(self) -> Iterator[Batch]:
        with contextlib.closing(iter(self)) as batches:
            yield from itertools.islice(batches, self.count)

    def _work(self, first: int, step: int, samples_per_epoch: int) -> Iterator[tuple[State, np.ndarray]]:
        state, update = self.state.settled(samples_per_epoch), 0
        for number in itertools.count(first, step):
            while update < number // self.count:
                state, update = state.advanced(samples_per_epoch), update + 1
            yield state, self.places[number % self.count]


def _loading(dataset: _Stream, data: Data) -> Iterator[Batch]:
    options = {}
    if data.workers:  # the S3 client does not survive a fork: its workers are started afresh
        options["multiprocessing_context"] = "spawn" if any("://" in r for r in data.corpora) else "fork"
        options["prefetch_factor"] = data.prefetch
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=data.workers,
        collate_fn=_itself,
        generator=torch.Generator(),  # the data loader seeds itself: the global one belongs to dropout
        worker_init_fn=_outlive,
        pin_memory=torch.cuda.is_available(),
        **options,
    )
    return iter(loader)


def _outlive(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach workers too: they go on, so that the trainer can save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _itself(batch: Batch) -> Batch:
    return batch
