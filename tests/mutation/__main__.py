"""A full pass, or what is left of one: `python -m tests.mutation [--only PART] [--survivors] [--sample N]`.

Outcomes are kept in .mutants/outcomes.jsonl by the text of the function, so that a pass that was stopped goes
on, and a module that has changed is tried anew. `--survivors` tries those again for which a test may have
been added since.
"""

import argparse
import json
import queue
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path

from tests.mutation import reasons
from tests.mutation.defects import Mutant, mutants
from tests.mutation.runs import BaselineFails, Server, Slot, slot
from tests.mutation.targets import ROOT, modules

FOLDER = ROOT / ".mutants"
SLOTS, BATCH = 2, 40  # processes; mutants of one module that a process takes at a time


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="modules whose path contains this text")
    parser.add_argument("--sample", type=int, help="so many mutants, chosen by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survivors", action="store_true", help="try again those that survived")
    asked = parser.parse_args()
    everything = [m for module in modules() if asked.only in module for m in mutants(ROOT, module)]
    if not everything:
        parser.error(
            f"--only {asked.only}: no mutated module has this in its path; "
            "tests/mutation/targets.py lists them"
        )
    if asked.sample:
        everything = sample(everything, asked.sample, asked.seed)
    known = read()
    todo = [
        m
        for m in everything
        if m.key not in known or (asked.survivors and known[m.key]["outcome"] == "survived")
    ]
    FOLDER.mkdir(exist_ok=True)
    print(
        f"{len(everything)} defects, {len(todo)} to try; Ctrl-C stops, the same command goes on", flush=True
    )
    try:
        failures = run(todo, tell)
    except KeyboardInterrupt:
        print("stopped; what was tried is kept, the same command goes on")
        return 130
    print(*failures, sep="\n", end="\n" if failures else "")
    return summary(everything, read()) or bool(failures)


def sample(everything: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many of them at most, the same for the same seed, those of a module side by side."""
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    return sorted(chosen, key=everything.index)


def read() -> dict[str, dict]:
    """The last outcome of each mutant ever tried, by its key."""
    path = FOLDER / "outcomes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def run(todo: list[Mutant], on_outcome, slots: int = SLOTS, folder: Path = FOLDER) -> list[str]:
    """Try each mutant; returns which modules could not be tried, and why. Ctrl-C ends after those at hand."""
    batches = [batch for _, own in groupby(todo, lambda m: m.module) for batch in batched(own, BATCH)]
    server, known, stop, lock = Server(), {}, threading.Event(), threading.Lock()
    free: queue.Queue[Slot] = queue.Queue()
    for number in range(slots):
        free.put(slot(folder, number, server, known))

    def work(batch: list[Mutant]) -> str | None:
        own = free.get()
        try:
            for mutant in batch:
                if stop.is_set():
                    break
                found = own.outcome(mutant)
                with lock:
                    on_outcome(mutant, found)
        except BaselineFails as error:
            return str(error)
        finally:
            free.put(own)

    with ThreadPoolExecutor(slots) as pool:
        results = pool.map(work, batches)
        try:
            return sorted({text for text in results if text})
        finally:
            stop.set()


def batched(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def tell(mutant: Mutant, found: dict) -> None:
    row = {
        "key": mutant.key,
        "module": mutant.module,
        "line": mutant.line,
        "operator": mutant.operator,
    } | found
    with open(FOLDER / "outcomes.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{time.strftime('%H:%M:%S')} {found['outcome']:8s} {mutant.name} {found.get('by', '')}", flush=True
    )


def summary(asked: list[Mutant], known: dict[str, dict]) -> int:
    """Print the survivors without a reason, and the share killed in each module; returns the exit code.

    0: at least 90 % of all were killed, and each survivor is in tests/mutants.md with its reason.
    """
    tried = [m for m in asked if known.get(m.key, {}).get("outcome", "none") != "none"]
    survivors = [m for m in tried if known[m.key]["outcome"] == "survived"]
    listed = reasons.read()
    unlisted = [m for m in survivors if reasons.place(m) not in listed]
    for mutant in unlisted:
        _, operator, line = reasons.place(mutant)
        print(f"survived without a reason: {mutant.module}:{mutant.line}  - {operator} in `{line}`:")
    for module in dict.fromkeys(m.module for m in tried):
        show(module, [m for m in tried if m.module == module], survivors)
    show("all", tried, survivors)
    print(f"{len(survivors)} survived, {len(unlisted)} of them without a reason in {reasons.FILE.name}")
    return 0 if tried and len(survivors) <= 0.1 * len(tried) and not unlisted else 1


def show(name: str, tried: list[Mutant], survivors: list[Mutant]) -> None:
    killed = len(tried) - len([m for m in tried if m in survivors])
    print(f"{killed:5d} of {len(tried):5d} killed ({100 * killed / max(1, len(tried)):5.1f} %)  {name}")


if __name__ == "__main__":
    sys.exit(main())
