"""The cache of an object store's blocks, over a folder that stands for the store."""

import errno
import os
import random
import threading
from contextlib import closing
from pathlib import Path

import pytest

from stages.pretrain.data import tars
from stages.pretrain.data.tars import Blocks
from stages.shards.storage import Storage

BLOCK = 1000
CONTENT = random.Random(0).randbytes(10 * BLOCK + 300)
NAME = "columns/audio/s.tar"
WIDE = 1 << 30


@pytest.fixture
def store(tmp_path, monkeypatch) -> Storage:
    monkeypatch.setattr(tars, "BLOCK_BYTES", BLOCK)
    made = Storage(tmp_path / "store")
    made.write(NAME, CONTENT)
    return made


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache" / "blocks" / "0123"


def read(blocks: Blocks, at: int, size: int) -> bytes:
    out = bytearray(size)
    blocks.read(NAME, at, memoryview(out))
    return bytes(out)


def fetched(blocks: Blocks) -> list[int]:
    """The numbers of the blocks that are fetched from now on."""
    numbers, fetch = [], blocks._fetch
    blocks._fetch = lambda file, name, number: numbers.append(number) or fetch(file, name, number)
    return numbers


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_any_stretch_is_read_and_every_block_is_fetched_once(store, folder):
    chance = random.Random(1)
    with closing(Blocks(store, folder, WIDE)) as blocks:
        numbers = fetched(blocks)
        for _ in range(100):
            at = chance.randrange(len(CONTENT))
            size = chance.randrange(1, min(4 * BLOCK, len(CONTENT) - at) + 1)
            assert read(blocks, at, size) == CONTENT[at : at + size]
        assert read(blocks, 0, len(CONTENT)) == CONTENT
        assert sorted(numbers) == list(range(11))
    with closing(Blocks(store, folder, WIDE)) as another:  # as after a restart
        numbers = fetched(another)
        assert read(another, 0, len(CONTENT)) == CONTENT and not numbers
    held = sorted(p.stat().st_size for p in folder.iterdir())
    assert held == [300] + [BLOCK] * 10 and not any(n.startswith(".") for n in names(folder))


@pytest.mark.parametrize(
    ("at", "size", "wanted"),
    [
        (0, 1, [0]),
        (0, BLOCK, [0]),
        (0, BLOCK + 1, [0, 1]),
        (BLOCK - 1, 1, [0]),
        (BLOCK - 1, 2, [0, 1]),
        (BLOCK, BLOCK, [1]),
        (3 * BLOCK + 5, 2 * BLOCK, [3, 4, 5]),
        (10 * BLOCK, 300, [10]),
    ],
)
def test_only_the_blocks_that_hold_wanted_bytes_are_fetched(store, folder, at, size, wanted):
    with closing(Blocks(store, folder, WIDE)) as blocks:
        numbers = fetched(blocks)
        blocks.ahead(NAME, at, size)
        blocks.ahead(NAME, at, size)  # they are coming already
        assert read(blocks, at, size) == CONTENT[at : at + size]
        blocks.ahead(NAME, at, size)  # they are there
        assert sorted(numbers) == wanted and not blocks._coming


@pytest.mark.parametrize(
    ("at", "size", "end"),
    [(10 * BLOCK, 301, 10 * BLOCK + 300), (9 * BLOCK, 5000, 10 * BLOCK + 300), (20 * BLOCK, 1, 20 * BLOCK)],
)
def test_a_file_that_ends_before_is_told(store, folder, at, size, end):
    with closing(Blocks(store, folder, WIDE)) as blocks, pytest.raises(EOFError) as told:
        read(blocks, at, size)
    assert str(told.value) == f"{NAME} ends after {end} bytes, {at + size} were expected"


def test_files_and_stores_do_not_share_blocks(store, folder, tmp_path):
    store.write("columns/audio/t.tar", CONTENT[::-1])
    other = Storage(tmp_path / "other")
    other.write(NAME, CONTENT[1:])
    with closing(Blocks(store, folder, WIDE)) as one, closing(Blocks(other, folder, WIDE)) as two:
        assert read(one, 0, 50) == CONTENT[:50] and read(two, 0, 50) == CONTENT[1:51]
        out = bytearray(50)
        one.read("columns/audio/t.tar", 0, memoryview(out))
        assert bytes(out) == CONTENT[::-1][:50]
    assert len(names(folder)) == 3


def half_written(monkeypatch, meanwhile) -> None:
    """Every write calls `meanwhile` when half of the bytes are on the disk, but for writes in there."""
    write, busy = Path.write_bytes, []

    def halting(path: Path, data: bytes) -> int:
        if not busy:
            write(path, data[: len(data) // 2])
            busy.append(path)
            try:
                meanwhile()
            finally:
                busy.pop()
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", halting)


def test_a_block_appears_whole_to_a_process_that_reads_meanwhile(store, folder, monkeypatch):
    seen = []
    with closing(Blocks(store, folder, WIDE)) as writer, closing(Blocks(store, folder, WIDE)) as reader:
        half_written(monkeypatch, lambda: seen.append((names(folder), read(reader, 0, BLOCK))))
        assert read(writer, 0, BLOCK) == CONTENT[:BLOCK]
    ((there, data),) = seen
    assert data == CONTENT[:BLOCK] and len(there) == 1 and there[0].startswith(".attempt-")
    assert names(folder) == [writer._path(NAME, 0).name]


def test_a_process_killed_while_it_stores_a_block_leaves_no_part_of_it(store, folder, monkeypatch):
    child = os.fork()
    if child == 0:
        half_written(monkeypatch, lambda: os._exit(9))
        read(Blocks(store, folder, WIDE), 0, BLOCK)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [n[:9] for n in names(folder)] == [".attempt-"]
    with closing(Blocks(store, folder, WIDE)) as blocks:
        assert read(blocks, 0, BLOCK) == CONTENT[:BLOCK]


@pytest.mark.parametrize("call", ["write_bytes", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_costs_speed_and_leaves_nothing(store, folder, monkeypatch, call, number):
    def fails() -> None:
        raise OSError(number, os.strerror(number))

    if call == "write_bytes":
        half_written(monkeypatch, fails)
    else:
        monkeypatch.setattr(Path, "replace", lambda path, target: fails())
    with closing(Blocks(store, folder, WIDE)) as blocks:
        numbers = fetched(blocks)
        assert read(blocks, 10, 50) == CONTENT[10:60] == read(blocks, 10, 50)
        assert numbers == [0, 0] and names(folder) == []


def test_a_block_that_vanished_between_two_looks_is_fetched_again(store, folder):
    with closing(Blocks(store, folder, WIDE)) as blocks:
        numbers = fetched(blocks)
        read(blocks, 0, 10)
        ahead = blocks.ahead
        blocks.ahead = lambda *what: ahead(*what) or blocks._path(NAME, 0).unlink()
        assert read(blocks, 0, 10) == CONTENT[:10] and numbers == [0, 0]


def test_so_many_blocks_on_their_way_are_held_and_the_others_read_from_the_disk(store, folder, monkeypatch):
    monkeypatch.setattr(tars, "COMING", 3)
    with closing(Blocks(store, folder, WIDE)) as blocks:
        numbers = fetched(blocks)
        for number, held in enumerate(([0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4])):
            blocks.ahead(NAME, number * BLOCK, BLOCK)
            assert [n for _, n in blocks._coming] == held
        blocks._pool.shutdown(wait=True)
        assert b"".join(blocks._block(NAME, n) for n in range(5)) == CONTENT[: 5 * BLOCK]
        assert sorted(numbers) == [0, 1, 2, 3, 4] and not blocks._coming


def test_few_files_of_a_store_are_open_those_used_last(store, folder, monkeypatch):
    monkeypatch.setattr(tars, "OPEN_FILES", 2)
    opened = []
    with closing(Blocks(store, folder, WIDE)) as blocks:
        for name in "abc":
            store.write(name, CONTENT)
        monkeypatch.setattr(store, "open", lambda name, known=store.open: opened.append(name) or known(name))
        for name in "abacab":
            blocks._handle(name)
    assert opened == ["a", "b", "c", "b"] and list(blocks._files) == ["a", "b"]


def aged(folder: Path, sizes: dict[str, int]) -> None:
    """Files of these sizes, each a second younger than the one before."""
    for age, (name, size) in enumerate(sizes.items()):
        path = folder.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (1e9 + age, 1e9 + age))


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (1000, "abcd"),
        (999, "bcd"),
        (900, "bcd"),
        (899, "cd"),
        (600, "cd"),
        (599, "d"),
        (400, "d"),
        (399, ""),
        (0, ""),
    ],
)
def test_the_oldest_blocks_of_any_run_go_until_the_cache_is_within_its_limit(store, folder, limit, left):
    other = "4567"
    aged(
        folder, {f"{folder.name}/z-a": 100, f"{other}/b": 300, f"{folder.name}/y-c": 200, f"{other}/a-d": 400}
    )
    with closing(Blocks(store, folder, limit)) as blocks:
        blocks.sweep()
    assert sorted(p.name[-1] for p in folder.parent.rglob("*") if p.is_file()) == list(left)


def test_a_block_that_another_process_swept_first_is_no_error(store, folder, monkeypatch):
    aged(folder, {f"{folder.name}/{n}": 100 for n in "abc"})
    (folder / "gone").symlink_to(folder / "nowhere")  # listed, but there is nothing any more
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, missing_ok=False: [unlink(path), unlink(path, missing_ok=missing_ok)]
    )
    with closing(Blocks(store, folder, 100)) as blocks:
        blocks.sweep()
    assert [n for n in names(folder) if n != "gone"] == ["c"]


@pytest.mark.parametrize(
    ("limit", "every"),
    [(0, 1), (8 * BLOCK, 1), (16 * BLOCK, 2), (56 * BLOCK, 7), (4000 * BLOCK, 8), (64 * BLOCK, 8)],
)
def test_the_size_of_the_cache_is_looked_at_before_it_can_grow_by_an_eighth(
    store, folder, monkeypatch, limit, every
):
    monkeypatch.setattr(tars, "SWEEP_BLOCKS", 8)
    with closing(Blocks(store, folder, limit)) as blocks:
        looks, stored = [], []
        blocks.sweep = lambda: looks.append(len(stored))
        for number in range(1, 21):
            stored.append(number)
            blocks._fetch(blocks._handle(NAME), NAME, 0)
    assert looks == list(range(every, 21, every))


def test_closing_waits_for_what_is_being_fetched_and_drops_what_is_not_begun(store, folder, monkeypatch):
    monkeypatch.setattr(tars, "THREADS", 1)
    begun, dropped, go, done = threading.Event(), threading.Event(), threading.Event(), []
    blocks = Blocks(store, folder, WIDE)
    blocks._fetch = lambda file, name, number: (begun.set(), go.wait(30), done.append(number))
    blocks.ahead(NAME, 0, 3 * BLOCK)
    first, *others = blocks._coming.values()
    others[-1].add_done_callback(lambda future: dropped.set())
    assert begun.wait(30)
    closing_it = threading.Thread(target=blocks.close)
    closing_it.start()
    assert dropped.wait(30)
    closing_it.join(0.05)
    assert all(o.cancelled() for o in others) and closing_it.is_alive() and not done
    go.set()
    closing_it.join(30)
    assert done == [0] and first.done()
    with pytest.raises(RuntimeError):
        blocks.ahead(NAME, 5 * BLOCK, 1)


def test_blocks_keep_their_size():
    """They are named by number alone: blocks of another size would be read as other bytes."""
    assert tars.BLOCK_BYTES == 2**20
