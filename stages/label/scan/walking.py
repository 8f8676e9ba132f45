"""A tree walked by threads, which wait for a disk or a store: a step finds some of it and names the next."""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
THREADS = 16
Step = Callable[[bool], tuple[list[T], list["Step"]]]


def walk(first: Step) -> Iterator[T]:
    """What all steps find, in no order. Each is told whether threads are short of work. The last one named is
    taken first: what waits are folders beside the way down, and no thread runs ahead of who takes what was
    found."""
    waiting, running, found = [first], set(), []
    with ThreadPoolExecutor(THREADS) as pool:
        while waiting or running or found:
            while waiting and len(running) < THREADS:
                step = waiting.pop()
                running.add(pool.submit(step, len(waiting) + len(running) < THREADS))
            yield from found
            found = []
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for one in ended:
                some, further = one.result()
                found += some
                waiting += further
