"""One mutant: its module is changed in a copy of the repository, its tests run there in a process of its own.

Processes are forked from a server that has imported torch, deepspeed, ray and pytest once: that is most of a
short test. Modules of the project are imported in the fork alone. No byte code is written or read: a changed
file may have the size and the time of the original.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.mutation.defects import Mutant, defective
from tests.mutation.targets import ROOT, tests_of

COPIED = (
    "cluster",
    "configs",
    "examples",
    "pipeline",
    "stages",
    "tests",
    "pyproject.toml",
    "Makefile",
    "README.md",
)
PRELOADED = [
    "av",
    "deepspeed",
    "duckdb",
    "hypothesis",
    "numpy",
    "psutil",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pytest",
    "ray",
    "safetensors.torch",
    "scipy.signal",
    "soundfile",
    "soxr",
    "torch",
    "yaml",
]
ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "DS_ACCELERATOR": "cpu",  # these are read when deepspeed and ray are imported
    "RAY_USAGE_STATS_ENABLED": "0",
}
PATIENCE_S, FACTOR = 10.0, 4.0  # a test may take this much longer than without a defect; then it hangs
BASELINE_S = 1200.0
PASSED, FAILED = 0, 1  # pytest's exit codes; a file that cannot be imported gives 2


class Server:
    """Forks processes that run tests in a copy of the repository."""

    def __init__(self) -> None:
        os.environ.update(ENVIRONMENT)
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(PRELOADED)

    def run(self, copy: Path, tests: list[str], seconds: dict[str, float]) -> tuple[int | None, dict]:
        """pytest's exit code (None: it did not end in time), and seconds and failures of single tests."""
        report = copy.parent / f"{copy.name}.json"
        report.unlink(missing_ok=True)
        limit_s = PATIENCE_S + FACTOR * max(seconds.values()) if seconds else BASELINE_S
        process = self._processes.Process(target=_tests, args=(copy, tests, seconds, limit_s, report))
        process.start()
        process.join(2 * PATIENCE_S + FACTOR * sum(seconds.values()) if seconds else BASELINE_S)
        ended = process.exitcode
        _kill(process.pid)
        process.join()
        with contextlib.suppress(OSError, ValueError):
            return ended, json.loads(report.read_text())
        return ended, {}


def _kill(pid: int) -> None:
    """The process and all it has started, also what was left behind: they are one session."""
    left = [p for p in psutil.process_iter() if _session(p.pid) == pid]
    with contextlib.suppress(psutil.Error):
        left += psutil.Process(pid).children(recursive=True)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


class Recorder:
    """A pytest plugin: quick tests first, and how long each took or which failed."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.took, self.failed = seconds, {}, []

    def pytest_collection_modifyitems(self, items: list) -> None:
        of_file: dict[str, float] = {}
        for item in items:
            of_file[item.fspath] = of_file.get(item.fspath, 0.0) + self.seconds.get(item.nodeid, 0.0)
        items.sort(
            key=lambda item: (of_file[item.fspath], str(item.fspath), self.seconds.get(item.nodeid, 0.0))
        )

    def pytest_collectreport(self, report) -> None:
        if report.failed:  # the module cannot be imported
            self.failed.append(report.nodeid)

    def pytest_runtest_logreport(self, report) -> None:
        self.took[report.nodeid] = self.took.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def _tests(copy: Path, tests: list[str], seconds: dict[str, float], limit_s: float, report: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.dont_write_bytecode = True
    output = os.open(f"{copy}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("cluster", "pipeline", "stages", "tests")]:
        del sys.modules[name]  # the fork has them of the original, to find this function
    import pytest

    recorder = Recorder(seconds)
    options = [
        "-x",
        "-q",
        "--assert=plain",
        f"--timeout={limit_s}",
        "-p",
        "no:cacheprovider",
        f"--rootdir={copy}",
        f"--basetemp={copy}.tmp",
    ]
    code = pytest.main([*options, *tests], plugins=[recorder])
    report.write_text(json.dumps({"took": recorder.took, "failed": recorder.failed}))
    sys.stdout.flush()
    os._exit(int(code))


class BaselineFails(RuntimeError):
    """The tests of a module fail without any defect."""


@dataclass
class Slot:
    """A copy of the repository in which one mutant at a time is run."""

    copy: Path
    server: Server
    tests: Callable[[str], list[str]] = tests_of
    known: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # module → test → seconds without a defect

    def baseline(self, module: str) -> dict[str, float]:
        """Seconds of each test of a module as it is. Raises `BaselineFails` when one fails."""
        if module not in self.known:
            code, report = self.server.run(self.copy, self.tests(module), {})
            if code != PASSED:
                raise BaselineFails(
                    f"the tests of {module} fail without a defect ({report.get('failed')}): "
                    f"see {self.copy}.txt"
                )
            self.known[module] = report["took"]
        return self.known[module]

    def _still_passes(self, module: str) -> None:
        code, report = self.server.run(self.copy, self.tests(module), self.known[module])
        if code != PASSED:
            raise BaselineFails(f"the tests of {module} passed before and fail now: see {self.copy}.txt")

    def outcome(self, mutant: Mutant) -> dict:
        """{"outcome": killed | survived | none, "by": the test that failed, "seconds"}."""
        text = defective(self.copy, mutant)
        original = (self.copy / mutant.module).read_text()
        if text is None:
            return {"outcome": "none"}
        seconds, began = self.baseline(mutant.module), time.monotonic()
        try:
            (self.copy / mutant.module).write_text(text)
            code, report = self.server.run(self.copy, self.tests(mutant.module), seconds)
        finally:
            (self.copy / mutant.module).write_text(original)
        if code == PASSED:
            found = {"outcome": "survived"}
        elif report.get("failed"):
            found = {"outcome": "killed", "by": report["failed"][0]}
        else:  # nothing says that a test failed: see whether it is the defect, or a full disk
            self._still_passes(mutant.module)
            found = {"outcome": "killed", "by": "hangs" if code is None else f"ends with {code}"}
        return found | {"seconds": round(time.monotonic() - began, 2)}


def slot(folder: Path, number: int, server: Server, known: dict) -> Slot:
    """A fresh copy below `folder`; it stays there at the end, so that a failure can be looked at."""
    copy = folder / f"slot{number}"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in COPIED:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
        else:
            shutil.copy(place, copy / name)
    return Slot(copy, server, known=known)
