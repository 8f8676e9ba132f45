"""Tars kept on a machine: by content, in bounded space, and never taken from under a reader."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from stages.shards import nearby, scratch
from stages.shards.nearby import Nearby
from tests.conftest import ROOT

MANY = 1 << 40


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Keeps a file of so many bytes under a name, and removes its first name."""
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))

    def put(cache: Nearby, name: str, size: int, when: int = 0) -> None:
        path = scratch.folder() / "made"
        path.write_bytes(name[:1].encode() * size)
        os.utime(path, (when, when))
        cache.keep(path, name)
        path.unlink()

    return put


def kept() -> set[str]:
    return set(os.listdir(scratch.shared(nearby.NAME)))


def test_what_was_kept_is_there_for_another_worker(put):
    put(Nearby(MANY), "aa", 5)
    with Nearby(MANY).held("aa") as path:
        assert path.read_bytes() == b"aaaaa"
    assert not path.exists() and kept() == {"aa"}
    with Nearby(MANY).held("bb") as path:
        assert path is None


KEEP = """
from stages.shards import scratch
from stages.shards.nearby import Nearby
path = scratch.folder() / "made"
path.write_bytes(b"aaaaa")
Nearby(1 << 40).keep(path, "aa")
"""


def test_a_worker_that_ends_leaves_what_it_kept_to_those_that_have_begun(put, tmp_path):
    """As decoding ends while the labels of its last shard begin."""
    cache, env = Nearby(MANY), os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", KEEP], cwd=ROOT, env=env, check=True)
    with cache.held("aa") as path:
        assert path.read_bytes() == b"aaaaa"


def test_those_used_longest_ago_go_and_a_reader_keeps_its_own(put):
    cache = Nearby(10)
    put(cache, "aa", 4, when=1)
    put(cache, "bb", 4, when=2)
    with cache.held("aa") as path:  # used just now
        put(cache, "cc", 4, when=3)
        assert kept() == {"aa", "cc"}
        put(cache, "dd", 9, when=2**33)
        assert kept() == {"dd"}
        assert path.read_bytes() == b"aaaa"
    put(cache, "ee", 11)
    assert "ee" not in kept(), "larger than all there is"


def test_half_of_what_is_free_stays_free(put, monkeypatch):
    monkeypatch.setattr(nearby.shutil, "disk_usage", lambda path: SimpleNamespace(free=6))
    put(Nearby(MANY), "aa", 6, when=1)
    assert kept() == {"aa"}  # 6 of 6 + 6
    put(Nearby(MANY), "bb", 3, when=2)
    assert kept() == {"bb"}


def test_nothing_is_kept_without_a_cache_or_without_links(put, monkeypatch):
    none = Nearby(0)
    put(none, "aa", 5)
    with none.held("aa") as path:
        assert path is None
    put(Nearby(MANY), "aa", 5)

    def link(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", link)
    put(Nearby(MANY), "bb", 5)
    with Nearby(MANY).held("aa") as path:
        assert path is None and kept() == {"aa"}
