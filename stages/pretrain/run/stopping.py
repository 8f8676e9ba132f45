"""A request to stop after this update: SIGTERM, Ctrl-C, Slurm's warning, or a file named `stop` in RUN."""

import signal
import threading
from pathlib import Path

from stages.pretrain.run.world import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: sbatch --signal=USR1@300


class Stopping:
    """Takes requests from `begin` on; before it, the signals do what they always do."""

    def __init__(self, file: Path):
        self.file, self._requested, self._reads_file, self._before = file, False, False, {}

    def begin(self, world: World) -> None:
        """In a main thread; rank 0 deletes the file of an earlier run."""
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
        return self._requested or (self._reads_file and self.file.exists())
