"""Reads of tars on a disk: files opened again, kept open, and what is told when bytes are missing."""

import errno
import os
from collections import Counter
from contextlib import closing

import pytest

from stages.pretrain.data import tars
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.tars import Tars
from tests.stages.pretrain.corpus import CROP, Corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus(str(tmp_path_factory.mktemp("corpus") / "out")).write(shards=2).gather()


@pytest.fixture
def local(corpus, tmp_path):
    pinned = pin(Data(corpora=(corpus.root,), crop_samples=CROP, cache=str(tmp_path / "cache")))
    with closing(Tars(pinned, tmp_path / "cache", 1.0)) as made:
        yield made


def wanted(reader: Tars, column: int, shard: int, at: int, size: int) -> bytes:
    out = bytearray(size)
    reader.read((column, shard, at, size), memoryview(out))
    return bytes(out)


def test_columns_are_numbered_audio_codes_cqt(corpus, local):
    for column, kind in enumerate(("audio", "codes", "cqt")):
        for shard, name in enumerate(sorted(corpus.keys)):
            assert wanted(local, column, shard, 700, 3000) == corpus.tar(kind, name).read_bytes()[700:3700]


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_a_failed_read_is_tried_three_times_with_the_file_opened_anew(corpus, local, monkeypatch, failures):
    calls, preadv, opened, known = Counter(), os.preadv, [], os.open

    def failing(*arguments) -> int:
        calls["read"] += 1
        if calls["read"] <= failures:
            raise OSError(errno.ESTALE, "stale")
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path) or known(path, *rest))
    if failures == 3:
        with pytest.raises(OSError, match="stale"):
            wanted(local, 0, 0, 0, 10)
        assert calls["read"] == 3 and not local._open
    else:
        shard = sorted(corpus.keys)[0]
        assert wanted(local, 0, 0, 512, 10) == corpus.tar("audio", shard).read_bytes()[512:522]
        assert calls["read"] == failures + 1
    assert opened == [str(corpus.tar("audio", sorted(corpus.keys)[0]))] * calls["read"]


def test_a_file_that_ends_before_is_told_at_once(corpus, local, monkeypatch):
    tar, preadv, calls = corpus.tar("codes", sorted(corpus.keys)[1]), os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda *arguments: calls.append(1) or preadv(*arguments))
    end = tar.stat().st_size
    assert len(wanted(local, 1, 1, end - 10, 10)) == 10
    with pytest.raises(EOFError) as told:
        wanted(local, 1, 1, end - 10, 11)
    assert (
        str(told.value)
        == f"columns/{tar.parent.name}/{tar.name} ends after {end} bytes, {end + 1} were expected"
        and len(calls) == 2
    )


def test_few_tars_are_open_those_read_last_and_none_after_the_end(local, monkeypatch):
    monkeypatch.setattr(tars, "OPEN_FILES", 2)
    closed, known = [], os.close
    monkeypatch.setattr(os, "close", lambda handle: closed.append(handle) or known(handle))
    handles = {}
    for column, held in ((0, [0]), (1, [0, 1]), (0, [1, 0]), (2, [0, 2]), (0, [2, 0])):
        wanted(local, column, 0, 0, 10)
        assert [c for c, _ in local._open] == held
        handles |= {c: h for (c, _), h in local._open.items()}
    assert closed == [handles[1]]
    local.close()
    assert sorted(closed) == sorted(handles.values()) and not local._open


def test_a_disk_is_told_what_comes_and_what_fails_is_told_by_the_read(corpus, local, monkeypatch):
    told, gone = [], corpus.tar("audio", sorted(corpus.keys)[1])
    monkeypatch.setattr(
        os,
        "posix_fadvise",
        lambda handle, *what: told.append((os.readlink(f"/proc/self/fd/{handle}"), *what)),
    )
    gone.rename(aside := gone.with_suffix(".aside"))
    try:
        local.ahead([(0, 1, 5, 6), (1, 0, 512, 100), (2, 0, 7, 8)])
    finally:
        aside.rename(gone)
    first = sorted(corpus.keys)[0]
    assert told == [
        (str(corpus.tar("codes", first)), 512, 100, os.POSIX_FADV_WILLNEED),
        (str(corpus.tar("cqt", first)), 7, 8, os.POSIX_FADV_WILLNEED),
    ]
