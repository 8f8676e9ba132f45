"""A request to stop: SIGTERM, Ctrl-C, Slurm's warning, or a file named `stop` in RUN. The update in progress
is finished first."""

import signal
import threading
from pathlib import Path
from typing import Any

from stages.pretrain.run.world import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: sbatch --signal=USR1@300


class Stopping:
    """Takes requests from the first update on; before it, the signals do what they always do."""

    def __init__(self, file: Path):
        self.file, self._requested, self._reads_file = file, False, False
        self._before: dict[int, Any] = {}

    def begin(self, world: World) -> None:
        """Take over the signals in a main thread; rank 0 deletes the file of an earlier run."""
        self._reads_file = world.is_rank_0
        if self._reads_file:
            self.file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in SIGNALS}

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self._requested = True

    def requested(self) -> bool:
        """Whether this rank got a signal, or rank 0 finds the file."""
        return self._requested or (self._reads_file and self.file.exists())
