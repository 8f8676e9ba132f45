"""Letters: B clips, N samples, L label frames, G a global batch."""

import functools
import json
import os
import shutil
import signal
from dataclasses import replace
from itertools import islice
from statistics import median

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.pretrain.data.batch import Batch
from stages.pretrain.data.loader import Loader, TooManyBad
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from tests.stages.pretrain.corpus import CROP, Corpus, K
from tests.stages.pretrain.reading import sample_ids

FRAMES, G = 48, 12
CLEAN, MIXED = Mixture(prob=0.0), Mixture()
pinned_once = functools.cache(pin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loader")


@pytest.fixture(scope="module")
def made(folder) -> Corpus:
    return Corpus(str(folder / "out")).write().gather()


@pytest.fixture(scope="module")
def data(made, folder) -> Data:
    return Data(corpora=(made.root,), crop_samples=CROP, cache=str(folder / "cache"), workers=0)


def loader(
    data: Data, micro_batch: int = 4, rank: int = 0, world: int = 1, mixture: Mixture = MIXED
) -> Loader:
    return Loader(pinned_once(data), data, Masking(), mixture, FRAMES, micro_batch, rank, world)


def start(data: Data, **fields) -> State:
    return State(pinned_once(data).fingerprint, **{"seed": 5, "global_batch": G} | fields)


def update(
    data: Data, state: State, micro_batch: int = 4, world: int = 1, updates: int = 1, **options
) -> list[dict[int, tuple]]:
    """For each update, position → everything a sample is, over all ranks and micro-batches."""
    found: list[dict[int, tuple]] = [{} for _ in range(updates)]
    for rank in range(world):
        made = loader(data, micro_batch, rank, world, **options)
        count = made.micro_batches(state)
        for i, batch in enumerate(islice(made.stream(state), count * updates)):
            assert 0 < len(batch.keys) <= micro_batch
            for b, position in enumerate(batch.positions):
                assert position not in found[i // count], "a sample twice"
                codes = next(iter(batch.codes.values()))[b]
                parts = [batch.wave_BN[b], batch.mask_BT[b], codes, batch.cqt_BLF[b]]
                found[i // count][position] = (batch.keys[b], *(p.numpy().tobytes() for p in parts))
        made.close()
    return found


# ranks, micro-batch
SPLITS = [(1, 12), (1, 1), (2, 3), (3, 4), (3, 2), (4, 3), (6, 1), (12, 1), (1, 5), (5, 2), (7, 3)]


@given(split=st.sampled_from(SPLITS), consumed=st.sampled_from([0, 12, 24, 55]), epoch=st.integers(0, 3))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_global_batch_is_the_same_at_any_number_of_ranks_and_micro_batch(data, split, consumed, epoch):
    world, micro_batch = split
    state = start(data, epoch=epoch, consumed=consumed)
    assert update(data, state, micro_batch, world) == update(data, state, 4, 1)


def test_crops_are_cut_from_the_whole_columns_to_the_frame(made, data):
    for corpus in (
        made,
        Corpus(made.root + "-flac", format="flac").write(),
        Corpus(made.root + "-8bit", storage="uint8").write(),
    ):
        own = replace(data, corpora=(corpus.root,))
        state, run = start(own), loader(own, mixture=CLEAN)
        for ids, batch in zip(_ids(run, state, 12), run.stream(state), strict=False):
            for b, (key, name) in enumerate(zip(batch.keys, ids, strict=True)):
                assert name.startswith(key + "+")
                first = int(name.split("+")[1])
                assert first % 320 == 0
                recording, segment = key.split("-")
                assert batch.recordings[b] == recording
                first += int(segment) * 64_000
                wave = corpus.waves[recording][first : first + CROP]
                assert np.array_equal(batch.wave_BN[b].numpy() * 32768, wave), corpus.format
                frames = slice(first // 320, (first + CROP) // 320)
                codes = batch.codes[corpus.names["codes"]]
                assert codes.dtype == torch.int64 and codes.shape == (4, CROP // 320, K)
                assert np.array_equal(codes[b].numpy(), corpus.codes[recording][frames])
                assert np.array_equal(batch.cqt_BLF[b].numpy(), corpus.cqt[recording][frames]), corpus.storage
        run.close()


def _of(run: Loader, state: State) -> list[str]:
    return sample_ids(run.pinned, run.data, state)


def _ids(run: Loader, state: State, micro_batches: int) -> list[list[str]]:
    """Ids of each micro-batch of one rank alone."""
    found, size = [], run.micro_batch
    while len(found) < micro_batches:
        ids = _of(run, state)
        found += [ids[i : i + size] for i in range(0, len(ids), size)]
        state = state.advanced(run.pinned.samples_per_epoch)
    return found


def test_two_teachers_columns_are_cut_to_the_same_frames(data, tmp_path):
    one, two = (Corpus(str(tmp_path / "out"), teacher=t).write(shards=1) for t in "ab")
    own = replace(data, corpora=(one.root,), codes=(one.names["codes"], two.names["codes"]))
    batch = next(loader(own).stream(start(own, global_batch=4)))
    assert (
        list(batch.codes)
        == [one.names["codes"], two.names["codes"]]
        == [c.name for c in pinned_once(own).codes]
    )
    first, second = batch.codes.values()
    assert torch.equal(second, 49 - first) and len(first.unique()) > 40


def test_an_epoch_draws_every_segment_and_the_next_one_other_crops(data):
    run, state = loader(data), start(data, global_batch=1)
    epochs: list[list[str]] = [[], []]
    while state.epoch < 2:
        epochs[state.epoch] += _of(run, state)
        state = state.advanced(run.pinned.samples_per_epoch)
    for ids in epochs:
        assert len(ids) == run.pinned.samples_per_epoch
        counts = {k: sum(i.startswith(k) for i in ids) for k in {i.split("+")[0] for i in ids}}
        assert len(counts) == 21 and set(counts.values()) <= {3, 4}  # three or four crops fit side by side
    assert set(epochs[0]) != set(epochs[1])
    some = sorted(i for i in epochs[0] if i.startswith(epochs[0][0].split("+")[0]))
    parts = sorted(int(i.split("+")[1]) for i in some)
    assert all(b > a for a, b in zip(parts, parts[1:], strict=False)), "a segment's crops share it out"


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_but_who_reads(data, workers):
    state = start(data)
    assert update(replace(data, workers=workers, prefetch=2), state, 2, updates=9) == update(
        data, state, 2, updates=9
    )


def test_a_stream_goes_on_from_any_state(data):
    state, expected = start(data), update(data, start(data), updates=8)  # over the end of an epoch
    for done in range(8):
        assert update(data, State.from_json(state.to_json()))[0] == expected[done]
        state = state.advanced(pinned_once(data).samples_per_epoch)
    assert state.epoch == 1


def test_a_stream_leaves_the_global_generators_alone(data):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    update(replace(data, workers=1), start(data))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(
        before[1], np.random.get_state()[1]
    )


def test_workers_outlive_the_signals_that_ask_the_trainer_to_stop(data):
    own = replace(data, workers=1, prefetch=1)
    run, before = loader(own), psutil.Process().children()  # multiprocessing's own, of other tests
    stream = run.stream(start(own))
    next(stream)
    (worker,) = set(psutil.Process().children()) - set(before)
    for asked in (signal.SIGINT, signal.SIGTERM):
        worker.send_signal(asked)
    assert all(len(b.keys) == 4 for b in islice(stream, 20)) and worker.is_running()
    run.close()
    assert worker.wait(20) is None or not worker.is_running()


def test_mixture_adds_pieces_of_the_same_global_batch_to_the_wave_alone(data):
    state, mixture = start(data), Mixture(prob=0.7, piece_s=(0.1, 0.3), gain=0.5)
    clean, mixed = (next(loader(data, G, mixture=m).stream(state)) for m in (CLEAN, mixture))
    run = loader(data, G, mixture=mixture)
    from stages.pretrain.data import counter_rng

    keys = counter_rng.keys(counter_rng.key(counter_rng.MIXTURE, state.seed, state.epoch), np.arange(G))
    pieces = mixture.draw(keys, np.arange(G), G, CROP)
    expected = clean.wave_BN.clone()
    for clip, donor, first, to, length in zip(
        pieces.clip, pieces.donor, pieces.start, pieces.to, pieces.length, strict=True
    ):
        expected[clip, to : to + length] += 0.5 * clean.wave_BN[donor, first : first + length]
    assert (
        len(pieces) > 5
        and torch.allclose(mixed.wave_BN, expected, atol=1e-6)
        and not torch.equal(mixed.wave_BN, clean.wave_BN)
    )
    assert torch.equal(mixed.cqt_BLF, clean.cqt_BLF) and torch.equal(mixed.mask_BT, clean.mask_BT)
    assert all(torch.equal(mixed.codes[n], clean.codes[n]) for n in clean.codes)
    run.close()


def test_context_for_an_online_cqt_comes_from_the_neighbouring_segments(made, data):
    own = replace(data, cqt="online")
    run, state, beside = loader(own, mixture=CLEAN), start(own), 25_230
    seen = set()
    for ids, batch in zip(_ids(run, state, 15), run.stream(state), strict=False):
        assert batch.cqt_BLF is None and batch.context_BN.shape == (4, CROP + 2 * beside)
        assert torch.equal(batch.context_BN[:, beside:-beside], batch.wave_BN)
        for b, name in enumerate(ids):
            key, first = name.split("+")
            recording, segment = key.split("-")
            whole = np.pad(made.waves[recording].astype(np.float32), beside) / 32768
            at = int(segment) * 64_000 + int(first)
            assert np.array_equal(batch.context_BN[b].numpy(), whole[at : at + CROP + 2 * beside])
            seen.add((int(segment), at < beside, at + CROP + beside > len(made.waves[recording])))
    assert len(seen) >= 4, "beginnings, ends and middles"


def test_held_out_crops_are_the_same_every_time_and_for_every_split(made, data):
    held = next(iter(made.waves))

    def all_of(world: int, micro_batch: int, limit: int = 256) -> dict:
        found, batches = {}, []
        for rank in range(world):
            run = loader(replace(data, valid_crops=limit), micro_batch, rank, world)
            own = list(run.validation())
            assert [b.wave_BN.shape[0] for b in own] == [micro_batch] * len(own)
            batches.append(len(own))
            for batch in own:
                assert set(batch.recordings) == {held} and not batch.replaced
                for b, position in enumerate(batch.positions):
                    if batch.mask_BT[b].any():
                        assert position not in found
                        found[position] = (
                            batch.keys[b],
                            batch.wave_BN[b].numpy().tobytes(),
                            batch.mask_BT[b].numpy().tobytes(),
                        )
        assert len(set(batches)) == 1, "every rank makes as many steps"
        return found

    whole = all_of(1, 4)
    assert len(whole) == sum(s // CROP for s in (64_000, 64_000, len(made.waves[held]) - 128_000))
    assert all_of(3, 2) == whole == all_of(2, 5)
    few = all_of(2, 3, limit=4)
    assert len(few) == 4 and {v for v in few.values()} != {v for v in list(whole.values())[:4]}


def test_a_held_out_crop_that_fails_counts_for_nothing(made, data, tmp_path):
    """Whatever the micro-batch, a crop alone in it too: what fills its place has an empty mask."""
    shutil.copytree(made.root, tmp_path / "bad")
    copy, own = (
        replace(made, root=str(tmp_path / "bad")),
        replace(data, corpora=(str(tmp_path / "bad"),), cache=str(tmp_path / "cache")),
    )
    pinned = pinned_once(own)
    row = int(pinned.valid_V[1])
    tar = copy.tar("codes", pinned.shard_names[0])
    spoilt = bytearray(tar.read_bytes())
    # in the segment's first crop alone
    spoilt[pinned.codes_RC[row, 0] : pinned.codes_RC[row, 0] + 2] = b"\xff\xff"
    tar.write_bytes(spoilt)
    whole = sum(b.mask_BT.any(1).sum() for b in loader(data, 4).validation())
    for micro_batch in (1, 4, 5):
        batches = list(loader(own, micro_batch).validation())
        assert sum(b.mask_BT.any(1).sum() for b in batches) == whole - 1
        told = [r for b in batches for r in b.replaced]
        assert told and all(r.startswith(f"{pinned.key(row)}: ") for r in told)


def damaged(made: Corpus, data: Data, to: str) -> Data:
    """A copy, damaged after it was pinned: one shard's codes cut off in the middle, one audio tar gone, a
    code beyond the codebook."""
    shutil.copytree(made.root, to)
    copy, own = replace(made, root=to), replace(data, corpora=(to,), cache=f"{to}-cache")
    pinned_once(own)
    first, second, third = sorted(made.keys)[1:]
    cut = copy.tar("codes", first)
    os.truncate(cut, cut.stat().st_size // 2)
    copy.tar("audio", second).unlink()
    spoilt = bytearray(copy.tar("codes", third).read_bytes())
    spoilt[3000:3002] = b"\xff\xff"
    copy.tar("codes", third).write_bytes(spoilt)
    return own


def test_a_sample_that_fails_is_replaced_by_the_same_one_everywhere_and_told(made, data, tmp_path):
    own = damaged(made, replace(data, max_bad_share=1.0), str(tmp_path / "bad"))
    state = start(own)
    found = update(own, state, 4, 1, updates=4)
    assert update(own, state, 2, 3, updates=4) == found
    run = loader(own)
    reasons = [r for batch in islice(run.stream(state), 12) for r in batch.replaced]
    assert run.seen == 48 and run.bad == len(reasons) > 5
    assert any("FileNotFoundError" in r for r in reasons) and any(
        "EOFError" in r and "ends after" in r for r in reasons
    )
    assert any("holds the code 65535, its codebooks have 50" in r for r in reasons)
    assert {r.split(":")[0] for r in reasons} <= {key for keys in made.keys.values() for key in keys}
    asked = [i.split("+")[0] for i in _of(run, state)]
    given = [found[0][position][0] for position in range(G)]
    failed = {r.split(":")[0] for r in reasons}
    assert all(a == g or a in failed for a, g in zip(asked, given, strict=True)) and asked != given


def test_too_many_bad_samples_stop_the_run(made, data, tmp_path):
    own = damaged(made, replace(data, max_bad_share=0.005), str(tmp_path / "bad"))
    with pytest.raises(
        TooManyBad,
        match=r"\d+ of \d+ samples could not be read, more than data.max_bad_share 0.005; last "
        r"[0-9a-f]{16}-0000",
    ):
        list(islice(loader(own).stream(start(own)), 200))
    shutil.rmtree(tmp_path / "bad" / "columns")
    with pytest.raises(ValueError, match="16 samples in a row could not be read"):
        next(loader(own).stream(start(own)))


def test_what_cannot_be_divided_is_refused_before_it_starts(data):
    with pytest.raises(
        ValueError,
        match="global_batch is 12, micro_batch 1 on 5 ranks: some ranks would have 2 samples for 3",
    ):
        loader(data, 1, 0, 5).micro_batches(start(data))
    with pytest.raises(ValueError, match="global_batch is 5000, an epoch has"):
        loader(data).stream(start(data, global_batch=5000))
    with pytest.raises(ValueError, match="6 frames are too few"):
        Loader(pin(data), data, Masking(), Mixture(), 6, 4)
    with pytest.raises(ValueError, match="data.workers is 2000 .*lower them"):
        loader(replace(data, workers=2000, prefetch=1000), 1000)


def test_a_rank_on_another_node_makes_its_own_index(data, tmp_path):
    pinned, elsewhere = pin(data), replace(data, cache=str(tmp_path / "elsewhere"))
    there = replace(pinned, folder=tmp_path / "not here")
    run = Loader(there, elsewhere, Masking(), Mixture(), FRAMES, 4)
    assert (tmp_path / "elsewhere" / "index" / pinned.fingerprint).is_dir()
    assert _of(run, start(data)) == _of(loader(data), start(data))


def test_batches_can_be_handed_on(data):
    batch = next(loader(data).stream(start(data)))
    assert isinstance(batch, Batch) and batch.mask_BT.sum(1).unique().tolist() == [
        Masking().masked_frames(FRAMES)
    ]
    assert (
        json.dumps(batch.positions) == "[0, 1, 2, 3]"
        and batch.wave_BN.is_contiguous()
        and batch.wave_BN.dtype == torch.float32
    )


def unshared_bytes(run_by: psutil.Process) -> int:
    return sum(p.memory_full_info().uss for p in [run_by, *run_by.children(recursive=True)])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_memory_does_not_grow(data, workers):
    """A leak shows in each of three stretches; what is freed late, or no longer shared, in one of them."""
    own, grown = replace(data, workers=workers), []
    stream, here = loader(own).stream(start(own)), psutil.Process()
    list(islice(stream, 200))
    for _ in range(3):
        before = unshared_bytes(here)
        list(map(type, islice(stream, 600)))
        grown.append((unshared_bytes(here) - before) / 2**20)
    stream.close()
    assert median(grown) < 1, f"{grown} MiB in 600 batches each"
