"""A rank without progress writes its stacks and ends."""

import faulthandler
import os
import threading
import time
from pathlib import Path

EXIT_CODE = 70


class Watchdog:
    """All ranks end when one's `beat` was not called for `limit_s`, as they wait for each other."""

    def __init__(self, folder: Path, rank: int, limit_s: float):
        self.path, self.limit_s = folder / f"rank-{rank}.txt", limit_s
        self._last, self._stopped = time.monotonic(), threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        self._last = time.monotonic()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self.limit_s / 4)):
            if time.monotonic() - self._last <= self.limit_s:
                continue
            why = f"no progress for {self.limit_s:.0f} s"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                print(f"{why}; every thread of process {os.getpid()}:", file=file, flush=True)
                faulthandler.dump_traceback(file)
            print(f"overtone: {why}, stacks are in {self.path}", flush=True)
            os._exit(EXIT_CODE)
