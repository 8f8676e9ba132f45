"""A tree walked by threads: at once, and never further than who takes what they find."""

import threading
from functools import partial

import pytest

from stages.label.scan import walking
from stages.label.scan.walking import THREADS, walk


def tree(depth: int, name: str, wide: bool):
    """Three folders in each folder."""
    return [name], [partial(tree, depth - 1, name + str(n)) for n in range(3)] if depth else []


def test_everything_is_found_once():
    found = list(walk(partial(tree, 5, "")))
    assert len(found) == len(set(found)) == sum(3**n for n in range(6))


def test_as_many_steps_as_threads_are_under_way_at_once():
    together = threading.Barrier(THREADS, timeout=30)

    def meet(wide):
        together.wait()
        return ["met"], []

    assert list(walk(lambda wide: ([], [meet] * THREADS))) == ["met"] * THREADS


def test_steps_hear_whether_threads_are_short_of_work():
    heard = []

    def step(left, wide):
        heard.append(wide)
        return [], [partial(step, 0)] * left

    list(walk(partial(step, 3 * THREADS)))
    assert heard[0] and not any(heard[1 : 1 + THREADS])
    assert heard.count(False) >= 2 * THREADS and heard.count(True) > 1, "so are the last ones"


def test_nobody_runs_ahead_of_who_takes_what_was_found():
    """An endless folder: what is read but not taken stays a few pieces a thread."""
    read = []

    def names(wide):
        return [], [names, look]

    def look(wide):
        read.append(None)
        return range(10), []

    found = walk(names)
    for taken in range(2000):
        next(found)
        assert len(read) <= taken // 10 + 2 * THREADS
    found.close()


def test_what_a_step_raises_ends_the_walk(monkeypatch):
    monkeypatch.setattr(walking, "THREADS", 2)

    def lost(wide):
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        list(walk(lambda wide: ([1], [partial(tree, 2, ""), lost])))
