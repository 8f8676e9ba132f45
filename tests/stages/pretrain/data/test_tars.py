"""Reading from an object store: ranges of a real server over a real port, a cache that stays below its
limit."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from stages.pretrain.data.loader import Loader
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from stages.pretrain.data.tars import BLOCK_BYTES, Tars
from stages.shards.storage import Storage
from tests.object_store import served
from tests.stages.pretrain.corpus import CROP, Corpus

REMOTE = "s3://training/corpus/out"


@pytest.fixture(scope="module")
def store():
    with served("training"):
        yield


@pytest.fixture(scope="module")
def corpus(store, tmp_path_factory) -> Corpus:
    made = Corpus(str(tmp_path_factory.mktemp("corpus") / "out")).write(shards=2, segments=20).gather()
    remote = Storage(REMOTE)
    for path in Path(made.root).rglob("*.*"):
        remote.write(str(path.relative_to(made.root)), path.read_bytes())
    return made


@pytest.fixture
def data(corpus, tmp_path) -> Data:
    return Data(corpora=(REMOTE,), crop_samples=CROP, cache=str(tmp_path / "cache"), workers=0)


def first_batches(data: Data, count: int = 6) -> list:
    pinned = pin(data)
    loader = Loader(pinned, data, Masking(), Mixture(), 48, 4)
    found = list(islice(loader.stream(State(pinned.fingerprint, 0, 8)), count))
    loader.close()
    return found


def same(one: list, two: list) -> bool:
    return all(
        a.keys == b.keys and torch.equal(a.wave_BN, b.wave_BN) and torch.equal(a.cqt_BLF, b.cqt_BLF)
        for a, b in zip(one, two, strict=True)
    )


def test_a_store_gives_what_a_disk_gives(corpus, data, tmp_path):
    local = replace(data, corpora=(corpus.root,), cache=str(tmp_path / "local"))
    assert pin(local).fingerprint == pin(data).fingerprint
    remote = first_batches(data)
    assert same(remote, first_batches(local)) and not any(b.replaced for b in remote)
    again = pin(data, pin(data).to_json())
    assert again.fingerprint == pin(data).fingerprint


def test_only_the_blocks_of_the_crops_are_fetched_and_once(data):
    pinned = pin(data)
    tars = Tars(pinned, data.cache_folder, 1.0)
    asked = []
    blocks = tars._blocks[0]
    fetch = blocks._fetch
    blocks._fetch = lambda file, name, number: asked.append((name, number)) or fetch(file, name, number)
    size = os.path.getsize  # of the files of the cache
    whole = Storage(REMOTE).size(f"columns/audio/{pinned.shard_names[0]}.tar")
    assert whole > 3 * BLOCK_BYTES
    expected = Storage(REMOTE).read(f"columns/audio/{pinned.shard_names[0]}.tar")
    # over a border, from the cache, at the end
    for at in (BLOCK_BYTES - 50, BLOCK_BYTES - 20, whole - 100):
        out = bytearray(100)
        tars.read((0, 0, at, 100), memoryview(out))
        assert bytes(out) == expected[at : at + 100]
    assert sorted(n for _, n in asked) == [0, 1, (whole - 100) // BLOCK_BYTES]
    stored = [size(p) for p in data.cache_folder.glob("blocks/*/*")]
    assert len(stored) == 3 and max(stored) == BLOCK_BYTES
    with pytest.raises(EOFError, match="ends after"):
        tars.read((0, 0, whole - 10, 100), memoryview(bytearray(100)))
    tars.close()


def test_the_cache_stays_below_its_limit(data):
    limit = 4 * BLOCK_BYTES
    own = replace(data, cache_gb=limit / 2**30)
    assert same(first_batches(own, 30), first_batches(replace(data, cache=data.cache + "-wide"), 30))
    held = sum(p.stat().st_size for p in own.cache_folder.glob("blocks/*/*"))
    assert BLOCK_BYTES < held <= limit + BLOCK_BYTES
    wide = sum(p.stat().st_size for p in Path(data.cache + "-wide").glob("blocks/*/*"))
    assert wide > held, "there was something to leave out"


@pytest.mark.slow
def test_workers_read_from_a_store(data):
    assert same(first_batches(replace(data, workers=2)), first_batches(data))


def test_an_object_that_vanished_is_a_bad_sample_and_a_missing_root_an_error(corpus, data):
    pinned = pin(data)
    name = f"columns/audio/{pinned.shard_names[1]}.tar"
    held = Storage(REMOTE).read(name)
    try:
        Storage(REMOTE).delete(name)
        loader = Loader(pinned, replace(data, max_bad_share=1.0), Masking(), Mixture(), 48, 8)
        batch = next(loader.stream(State(pinned.fingerprint, 0, 8)))
        assert batch.replaced and all(k in corpus.keys[pinned.shard_names[0]] for k in batch.keys)
    finally:
        Storage(REMOTE).write(name, held)
    with pytest.raises(ValueError, match="s3://nobody/there cannot be read as labels"):
        pin(replace(data, corpora=("s3://nobody/there",)))
