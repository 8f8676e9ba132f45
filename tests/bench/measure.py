"""What benchmarks share: CPU time of whole process trees, what others took meanwhile, and the machine's
name."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Row:
    """One line of the table. `holds` is None where there is no target, or where it could not be judged."""

    claim: str
    measured: str
    target: str
    holds: bool | None


def tree_cpu_by_process(root: int | None = None, waited: bool = True) -> dict[tuple[int, int], float]:
    """CPU seconds of a process and of its living descendants, with what each has `waited` for, by (pid,
    start)."""
    children, cpu = defaultdict(list), {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parts, pid = text[text.rindex(")") + 2 :].split(), int(entry)
            children[int(parts[1])].append(pid)
            ended = sum(map(int, parts[13:15])) * TICK_S if waited else 0.0
            cpu[pid] = (pid, int(parts[19])), _clock_s(pid) + ended
    found, waiting = {}, [root or os.getpid()]
    while waiting:
        pid = waiting.pop()
        if pid in cpu:
            found[cpu[pid][0]] = cpu[pid][1]
        waiting += children[pid]
    return found


def tree_cpu_s() -> float:
    return sum(tree_cpu_by_process().values())


def _clock_s(pid: int) -> float:
    """A process's own CPU clock: nanoseconds, where /proc counts ticks."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of linux/posix-timers.h
    except OSError:
        return 0.0  # gone


def machine_cpu_s() -> float:
    """CPU seconds that all cores have been busy since the start, whoever had them (stolen time too)."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * TICK_S


@dataclass
class Span:
    wall_s: float = 0.0
    cpu_s: float = 0.0  # ours
    others_s: float = 0.0  # CPU seconds of everyone else on this machine

    def text(self) -> str:
        return (
            f"{self.wall_s:.1f} s wall, {self.cpu_s:.1f} s CPU, others took "
            f"{self.others_s / max(self.wall_s, 1e-9):.2f} cores"
        )


@contextmanager
def span(sampled: bool = False) -> Iterator[Span]:
    """Measures its block: wall time, this process tree's CPU time, and everyone else's.

    sampled: look twice a second, for trees whose dead nobody waits for (Ray's workers); what a
    process does in its last half second is then counted as someone else's."""
    found, begun, own, all_of_it = Span(), time.perf_counter(), tree_cpu_by_process(), machine_cpu_s()
    seen, over = dict(own), threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            seen.update(tree_cpu_by_process())

    thread = threading.Thread(target=look, daemon=True)
    if sampled:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        if sampled:
            thread.join()
    seen.update(tree_cpu_by_process())
    found.wall_s, found.cpu_s = time.perf_counter() - begun, sum(seen.values()) - sum(own.values())
    found.others_s = max(0.0, machine_cpu_s() - all_of_it - found.cpu_s)


def run(module: str, *arguments: object, cores: set[int] | None = None) -> str:
    """Run `python -m module …` from the root; its stdout. Raises RuntimeError with what it said when it
    fails."""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    if done.returncode:
        raise RuntimeError(
            f"{module} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
        )
    return done.stdout


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    names = ("torch", "ray", "av", "soundfile", "soxr", "numpy", "pyarrow", "encodec", "nnAudio")
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {CORES} cores, {memory:.0f} GiB, Python {platform.python_version()}, {versions}"
