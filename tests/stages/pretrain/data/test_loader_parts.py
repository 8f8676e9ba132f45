"""The loader's arithmetic by itself: stripes, bad samples, shared memory, held-out crops, workers' turns.

Letters: G samples of a global batch, V held-out crops.
"""

import errno
import signal
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.pretrain.data import counter_rng, loader
from stages.pretrain.data.crop_index import CropIndex
from stages.pretrain.data.crops import Reader
from stages.pretrain.data.loader import Loader, TooManyBad, held_out
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from tests.stages.pretrain import plain_draws as plain
from tests.stages.pretrain.corpus import CROP, Corpus
from tests.stages.pretrain.reading import sample_ids

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def made(folder) -> Corpus:
    return Corpus(str(folder / "out")).write(shards=4, valid=3).gather()


@pytest.fixture(scope="module")
def data(made, folder) -> Data:
    return Data(corpora=(made.root,), crop_samples=CROP, cache=str(folder / "cache"), workers=0)


@pytest.fixture(scope="module")
def pinned(data):
    return pin(data)


def loading(pinned, data: Data, micro_batch: int = 4, rank: int = 0, world: int = 1) -> Loader:
    return Loader(pinned, data, Masking(), Mixture(prob=0.0), FRAMES, micro_batch, rank, world)


def state(pinned, global_batch: int, **fields) -> State:
    return State(pinned.fingerprint, 5, global_batch, **fields)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_an_update_read_in_this_process_is_that_of_the_stream(pinned, data, rank, world):
    at, run = state(pinned, 10, consumed=10), loading(pinned, data, 2, rank, world)
    batches, stream = list(run.read(at)), run.stream(at)
    assert len(batches) == run.micro_batches(at)
    for batch, expected in zip(batches, stream, strict=False):
        assert batch.positions == expected.positions and torch.equal(batch.wave_BN, expected.wave_BN)
    run.close()


def test_a_sample_of_training_crops_is_the_same_on_every_rank_in_micro_batches_of_at_most_16(pinned, data):
    one, other = (loading(pinned, data, *of) for of in ((4, 0, 1), (2, 1, 3)))
    count = pinned.samples_per_epoch
    batches = list(one.sample(count + 7))
    assert sum(len(batch.keys) for batch in batches) == count and len(batches) == -(-count // 16)
    assert max(len(batch.keys) for batch in batches) <= 16
    assert [b.keys for b in batches] == [b.keys for b in other.sample(count)]
    first = sample_ids(pinned, data, State(pinned.fingerprint, 0, 3))
    (batch,) = one.sample(3)
    assert batch.keys == [name.partition("+")[0] for name in first]


def test_every_rank_makes_as_many_micro_batches_of_nearly_one_size_or_the_split_is_refused(pinned, data):
    refused = 0
    for world in (1, 2, 3, 5):
        for micro_batch in (1, 2, 3, 4, 7):
            for global_batch in range(1, 14):
                at = state(pinned, global_batch)
                own = [list(range(rank, global_batch, world)) for rank in range(world)]
                count = max(-(-len(places) // micro_batch) for places in own)
                run = loading(pinned, data, micro_batch, world - 1, world)
                if min(map(len, own)) < count:
                    refused += 1
                    with pytest.raises(
                        ValueError,
                        match=f"some ranks would have {min(map(len, own))} samples for {count} micro-batches",
                    ):
                        run.micro_batches(at)
                    continue
                assert run.micro_batches(at) == count
                for rank in range(world):
                    parts = loader._Stream(run._made, count, rank, world, at).places
                    assert np.concatenate(parts).tolist() == own[rank], "the stripe, in order"
                    sizes = [len(p) for p in parts]
                    assert len(sizes) == count and 0 < min(sizes) <= max(sizes) <= min(
                        micro_batch, min(sizes) + 1
                    )
    assert refused > 5


def test_workers_take_micro_batches_in_turn_over_updates_and_epochs(pinned, data):
    at, per_epoch = state(pinned, 8, consumed=16, epoch=3), 30
    stream = loader._Stream(loading(pinned, data)._made, 3, 0, 1, at)
    expected, now = [], at
    for _ in range(4):
        expected += [(now, places.tolist()) for places in stream.places]
        now = now.advanced(per_epoch)
    assert (expected[3][0].epoch, expected[3][0].consumed) == (4, 0), (
        "what is left of an epoch is no global batch"
    )
    for workers in (1, 2, 5):
        for worker in range(workers):
            work = stream._work(worker, workers, per_epoch)
            for number in range(worker, len(expected), workers):
                found, places = next(work)
                assert (found, places.tolist()) == expected[number]


def test_a_worker_asks_for_the_next_crops_before_it_reads_the_present_ones(pinned, data, monkeypatch):
    told = []
    for name in ("ahead", "batch"):
        known = getattr(Reader, name)
        monkeypatch.setattr(
            Reader,
            name,
            lambda reader, plan, name=name, known=known: (
                told.append((name, plan.places[0])),
                known(reader, plan),
            )[1],
        )
    stream = loading(pinned, data).stream(state(pinned, 8))
    first = next(stream), next(stream)
    assert told == [("ahead", 0), ("ahead", 4), ("batch", 0), ("ahead", 0), ("batch", 4)]
    assert [b.positions[0] for b in first] == [0, 4]


def test_a_rank_starts_settled_and_with_a_micro_batch_of_one_at_least(pinned, data):
    for micro_batch in (0, -1):
        with pytest.raises(ValueError, match=f"micro_batch is {micro_batch}: expected at least 1"):
            loading(pinned, data, micro_batch)
    for rank, world in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(AssertionError):
            loading(pinned, data, 1, rank, world)
    run = loading(pinned, data, 1)
    last = pinned.samples_per_epoch - 7
    ids, crops = (
        sample_ids(pinned, data, state(pinned, 8, consumed=last)),
        CropIndex(pinned, data).crops(state(pinned, 8, epoch=1), np.arange(8)),
    )
    assert (
        ids == [f"{pinned.key(row)}+{start}" for row, start in zip(crops.row, crops.start, strict=True)]
        and len(set(ids)) == 8
    )
    alone = Loader(pinned, data, Masking(), Mixture(), FRAMES, 8)
    assert (alone.rank, alone.world, alone.micro_batches(state(pinned, 8))) == (0, 1, 1)
    assert next(run.stream(state(pinned, 8, consumed=last))).positions == [0]


def followed(run: Loader, monkeypatch, batches: list[tuple[int, int]]) -> list:
    """What a loader gives of batches with so many samples, so many of them replaced."""
    made = [
        SimpleNamespace(keys=["k"] * size, replaced=[f"k: {i}" for i in range(bad)]) for size, bad in batches
    ]
    monkeypatch.setattr(loader, "_loading", lambda dataset, data: iter(made))
    return list(run.stream(state(run.pinned, 8)))


def test_the_share_of_bad_samples_is_judged_of_a_thousand_at_first_and_then_of_all(pinned, data, monkeypatch):
    run = loading(pinned, replace(data, max_bad_share=0.01))
    assert len(followed(run, monkeypatch, [(4, 4), (4, 4), (4, 2)])) == 3 and (run.seen, run.bad) == (12, 10)
    with pytest.raises(
        TooManyBad,
        match="^11 of 16 samples could not be read, more than data.max_bad_share 0.01; last k: 0: `overtone",
    ):
        followed(run, monkeypatch, [(4, 1)])
    run = loading(pinned, replace(data, max_bad_share=0.01))
    assert len(followed(run, monkeypatch, [(2000, 0), (400, 24)])) == 2
    with pytest.raises(TooManyBad, match="^25 of 2401 samples"):
        followed(run, monkeypatch, [(1, 1)])
    run = loading(pinned, replace(data, max_bad_share=0.0))
    assert len(followed(run, monkeypatch, [(4, 0)])) == 1
    with pytest.raises(TooManyBad, match="^1 of 8 samples"):
        followed(run, monkeypatch, [(4, 1)])


@pytest.mark.parametrize(("cqt", "bins"), [("column", 12), ("none", 0)])
def test_shared_memory_that_cannot_hold_the_batches_of_the_workers_is_refused(data, monkeypatch, cqt, bins):
    own = replace(data, cqt=cqt)
    pinned, asked = pin(own), []
    free = [0]
    monkeypatch.setattr(
        loader.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=free[0])
    )
    crop = (
        4 * CROP + 4 * CROP + 4 * bins * CROP // 320
    )  # waves, pinned once more or codes, CQT frames in fp32
    wide = replace(own, workers=3, prefetch=4)
    free[0] = crop * 50 * 3 * 5
    loading(pinned, wide, 50)
    free[0] -= 1
    mib = f"{(free[0] + 1) / 2**20:.0f}"
    with pytest.raises(
        ValueError,
        match=f"data.workers is 3 and data.prefetch 4: .* take {mib} MiB of /dev/shm, {mib} MiB are free",
    ):
        loading(pinned, wide, 50)
    loading(pinned, replace(wide, workers=0), 50)
    assert set(asked) == {"/dev/shm"}

    def absent(path):
        raise OSError(errno.ENOENT, "no such folder")

    monkeypatch.setattr(loader.shutil, "disk_usage", absent)
    loading(pinned, wide, 50)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 10, 35, 256])
def test_held_out_crops_are_drawn_in_turn_from_every_recording(pinned, data, limit):
    every = [
        (int(row), CROP * i) for row in pinned.valid_V for i in range(int(pinned.samples_R[row]) // CROP)
    ]
    chance = [plain.bits(plain.key(plain.VALIDATION, 0), i) for i in range(len(every))]
    own = defaultdict(list)
    for i, (row, _) in enumerate(every):
        own[pinned.recording(row)].append(i)
    turn = {i: t for crops in own.values() for t, i in enumerate(sorted(crops, key=lambda i: chance[i]))}
    expected = sorted(sorted(turn, key=lambda i: (turn[i], chance[i]))[:limit])
    crops = held_out(pinned, replace(data, valid_crops=limit))
    assert list(zip(crops.row.tolist(), crops.start.tolist(), strict=True)) == [every[i] for i in expected]
    assert len(own) == 3 and (limit < 3 or {pinned.recording(r) for r in crops.row} == set(own))


def test_nothing_held_out_is_no_crop(made, folder):
    bare = Corpus(str(folder / "bare"), seed=1).write(shards=1, valid=0).gather()
    own = Data(corpora=(bare.root,), crop_samples=CROP, cache=str(folder / "cache"), workers=0)
    assert len(held_out(pin(own), own).row) == 0 and list(loading(pin(own), own).validation()) == []


@pytest.mark.parametrize(
    ("world", "micro_batch", "limit"), [(1, 4, 8), (1, 4, 9), (2, 3, 7), (3, 2, 6), (3, 2, 1)]
)
def test_validation_stripes_the_crops_over_the_ranks_and_fills_up_with_empty_masks(
    pinned, data, world, micro_batch, limit
):
    own = replace(data, valid_crops=limit)
    rounds, seen = -(-limit // (world * micro_batch)), []
    for rank in range(world):
        run = loading(pinned, own, micro_batch, rank, world)
        batches = list(run.validation())
        assert len(batches) == rounds and run._reader is not None
        for number, batch in enumerate(batches):
            numbers = [number * world * micro_batch + rank + world * i for i in range(micro_batch)]
            assert batch.positions == [n % limit for n in numbers]
            keys_B = counter_rng.keys(counter_rng.key(counter_rng.VALIDATION, 1), np.array(batch.positions))
            expected = Masking().draw(keys_B, FRAMES) & (np.array(numbers) < limit)[:, None]
            assert np.array_equal(batch.mask_BT.numpy(), expected)
            seen += [n for n in numbers if n < limit]
        run.close()
        assert run._reader is None
    assert sorted(seen) == list(range(limit))


def test_closing_ends_every_stream(pinned, data):
    run = loading(pinned, data)
    streams = [run.stream(state(pinned, 8)) for _ in range(2)]
    for stream in streams:
        next(stream)
    run.close()
    assert not run._streams and all(next(stream, None) is None for stream in streams)


@pytest.mark.parametrize(
    ("corpora", "workers", "expected"),
    [
        (("a", "b"), 3, {"prefetch_factor": 6, "multiprocessing_context": "fork"}),
        (("a", "s3://b/c"), 1, {"prefetch_factor": 6, "multiprocessing_context": "spawn"}),
        (("a",), 0, {}),
    ],
)
def test_workers_are_forked_but_for_object_stores_and_seed_nothing(monkeypatch, corpora, workers, expected):
    options = {}
    monkeypatch.setattr(loader, "DataLoader", lambda dataset, **given: options.update(given) or [dataset])
    assert list(loader._loading("it", Data(corpora=corpora, workers=workers, prefetch=6))) == ["it"]
    assert options.pop("generator") is not torch.default_generator
    assert options == expected | {
        "batch_size": None,
        "num_workers": workers,
        "collate_fn": loader._itself,
        "worker_init_fn": loader._outlive,
        "pin_memory": torch.cuda.is_available(),
    }


def test_a_worker_asked_to_stop_goes_on_for_a_while_and_then_ends(monkeypatch):
    alarms, before = [], {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    monkeypatch.setattr(signal, "alarm", alarms.append)
    try:
        loader._outlive(0)
        assert (
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        )
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert alarms == [loader.GRACE_S] == [120]
