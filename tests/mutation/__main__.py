"""A full pass, or what is left of one: `python -m tests.mutation [--only PART] [--survivors] [--sample N]`.

Outcomes are kept in .mutants/outcomes.jsonl by the text of the module, so that a pass that was stopped goes
on, and a module that has changed is tried anew. `--survivors` tries those again for which a test may have
been added since.
"""

import argparse
import json
import random
import sys
import threading
import time
from pathlib import Path

from tests.mutation import reasons
from tests.mutation.defects import Mutant, mutants
from tests.mutation.runs import Server, slot
from tests.mutation.targets import ROOT, modules

FOLDER = ROOT / ".mutants"
SLOTS = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="modules whose path contains this text")
    parser.add_argument("--sample", type=int, help="so many mutants, chosen by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survivors", action="store_true", help="try again those that survived")
    asked = parser.parse_args()
    everything = [m for module in modules() if asked.only in module for m in mutants(ROOT, module)]
    if asked.sample:
        everything = random.Random(asked.seed).sample(everything, asked.sample)
    known = read()
    todo = [
        m
        for m in everything
        if m.key not in known or (asked.survivors and known[m.key]["outcome"] == "survived")
    ]
    run(todo, lambda m, found: tell(m, found))
    return summary(everything, read())


def read() -> dict[str, dict]:
    """The last outcome of each mutant ever tried, by its key."""
    path = FOLDER / "outcomes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def run(todo: list[Mutant], on_outcome, slots: int = SLOTS, folder: Path = FOLDER) -> None:
    """Try each mutant; modules are shared out among the slots, so that their baselines are measured once."""
    server, lock = Server(), threading.Lock()
    by_module: dict[str, list[Mutant]] = {}
    for mutant in todo:
        by_module.setdefault(mutant.module, []).append(mutant)
    waiting, failures = sorted(by_module.values(), key=len), []

    def work(number: int) -> None:
        with slot(folder, number, server) as own:
            while not failures:
                with lock:
                    if not waiting:
                        return
                    batch = waiting.pop()
                try:
                    for mutant in batch:
                        found = own.outcome(mutant)
                        with lock:
                            on_outcome(mutant, found)
                except Exception as error:  # carried to the caller
                    failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


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
