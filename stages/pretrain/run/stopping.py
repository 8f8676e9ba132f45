"""Asked to stop: SIGTERM, Ctrl-C, Slurm's warning, or a file named `stop` in RUN. The update in hand is
finished first."""

import contextlib
import signal
import threading
from pathlib import Path
from typing import Any

from stages.pretrain.run.world import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: sbatch --signal=USR1@300


class Stopping:
    """Listens from the first update on; before it, the signals do what they always do."""

    def __init__(self, file: Path):
        self.file, self._asked, self._looks = file, False, False
        self._before: dict[int, Any] = {}

    def begin(self, world: World) -> None:
        """Take the signals over, where this is a process's main thread; rank 0 forgets a file of an earlier
        run."""
        self._looks = world.is_rank_0
        if self._looks:
            with contextlib.suppress(FileNotFoundError):
                self.file.unlink()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Whether this rank was told, by a signal or, on rank 0, by the file."""
        return self._asked or (self._looks and self.file.exists())
