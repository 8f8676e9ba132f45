"""A child process that may crash, hang or grow without harm to its parent: start, messages, deadline, death.

`child` is its other end. Its users decide what a death means: `process` decodes, `scan.probe_pool` probes.
"""

import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START_S = 120.0  # importing from a slow network disk
HEADER = struct.Struct("<cI")
# What a broken decoder dies of. Any other signal (SIGKILL, SIGTERM, ...) came from a kernel short of memory,
# an operator or a scheduler, and proves nothing about the recording.
CRASHES = {getattr(signal, f"SIG{name}") for name in ["SEGV", "BUS", "ABRT", "ILL", "FPE", "SYS", "TRAP"]}
ROOT = Path(__file__).resolve().parents[3]


class DecoderDied(Exception):
    """The child ended, or hung. code: as `Popen.returncode`, None if it was still alive. outside: whether
    another process ended it."""

    def __init__(self, words: str, code: int | None = None):
        super().__init__(words)
        self.code = code
        self.outside = code is not None and code < 0 and -code not in CRASHES


class SupervisedChild:
    """A process that answers requests with the functions `targets`, each `module:function` (see `child`).

    Its first message is S, within START_S. It dies with the thread that started it. memory_gb: its address
    space (RLIMIT_AS). hung: the words for a message that is late by some seconds."""

    def __init__(self, memory_gb: float, *targets: str, hung: str = "decoder hung: no audio for {:g} s"):
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",  # the user's folder may hold an av.py
            **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1"),  # stacks count as memory
        }
        command = [sys.executable, "-m", "stages.label.decoding.child"]
        command += [str(int(memory_gb * 2**30)), str(os.getpid()), *targets]
        self._hung, pipe = hung, subprocess.PIPE
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the child
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._stderr, bufsize=0, env=env
        )
        self._poll = select.poll()  # select() fails above descriptor 1024
        self._poll.register(self.fileno(), select.POLLIN)

    def fileno(self) -> int:
        """The descriptor of its messages."""
        return self.process.stdout.fileno()

    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, request: dict) -> None:
        """Raises `DecoderDied`."""
        left = json.dumps(request).encode() + b"\n"
        try:
            while left:  # a signal may cut a long write short
                left = left[self.process.stdin.write(left) :]
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, patience_s: float, since: float | None = None) -> tuple[bytes, bytearray]:
        """The next message: kind and payload. Raises `DecoderDied`, also if it has not come `patience_s`
        after `since` (by `time.monotonic`; by default now)."""
        deadline = (time.monotonic() if since is None else since) + patience_s
        kind, length = HEADER.unpack(self._exactly(HEADER.size, deadline, patience_s))
        return kind, self._exactly(length, deadline, patience_s)

    def last_words(self) -> str:
        """The last line that it wrote to stderr, or nothing."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4096))
        text = self._stderr.read().decode("utf-8", "backslashreplace").strip()
        return text.rpartition("\n")[2].strip()

    def end(self) -> None:
        with self.process:  # waits, and closes the pipes
            self.process.kill()
        self._stderr.close()

    def _exactly(self, count: int, deadline: float, patience_s: float) -> bytearray:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            left_s = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(left_s * 1000):
                raise DecoderDied(self._hung.format(patience_s))
            read = os.readv(self.fileno(), [view[got:]])
            if read == 0:
                raise self._death()
            got += read
        return data

    def _death(self) -> DecoderDied:
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:  # it lives on without its pipe: it would never answer
            return DecoderDied("decoder crashed: closed its pipe")
        words = f"signal {-code}" if code < 0 else self.last_words() or f"exit {code}"
        return DecoderDied(f"decoder crashed: {words}", code)
