"""The child's end of `supervised`: `python -m stages.label.decoding.child MEMORY_BYTES PARENT_PID TARGET...`.

A TARGET is `module:function`. The first is called with the functions of the others, then a request (JSON, one
a line of stdin) and `send(kind, payload)`, which writes a message to stdout: kind (1 byte), length (uint32,
little-endian), payload. Two kinds come from here, the others from the target:

    S  ready, once                       M  memory ran out; the process ends
"""

import ctypes
import functools
import json
import logging
import os
import pkgutil
import resource
import signal
import struct
import sys
from collections.abc import Callable

import av

PR_SET_PDEATHSIG = 1
Send = Callable[[bytes, bytes | memoryview], None]


def serve(answer: Callable[[dict, Send], None], send: Send) -> None:
    """Answer requests until stdin ends. Any exception but MemoryError is a bug and ends the process."""
    send(b"S", b"")
    for line in iter(sys.stdin.buffer.readline, b""):
        try:
            answer(json.loads(line), send)
        except MemoryError:
            send(b"M", b"")
            return  # the rest of this heap cannot be trusted


def main() -> None:
    memory_bytes, parent = map(int, sys.argv[1:3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    av.logging.set_level(av.logging.ERROR)
    # Without a handler all of it goes to stderr, whose last line is given as the reason of a crash.
    logging.getLogger("libav").addHandler(logging.NullHandler())
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the messages

    def send(kind: bytes, payload: bytes | memoryview) -> None:
        out.write(struct.pack("<cI", kind, memoryview(payload).nbytes))
        out.write(payload)
        out.flush()

    try:
        serve(functools.partial(*map(pkgutil.resolve_name, sys.argv[3:])), send)
    except BrokenPipeError:
        os._exit(0)  # the parent has closed the pipe


if __name__ == "__main__":
    main()
