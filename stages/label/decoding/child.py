"""The decoder's own process: `python -m stages.label.decoding.child MEMORY_BYTES PARENT_PID`.

One request a line on stdin (JSON), answered by messages on stdout: a kind (1 byte), a length
(uint32, little-endian), a payload. `guard` is the other end.

    S  ready, once                       B  int16 mono samples at the asked rate
    H  JSON facts of the source          E  JSON facts known at the end: the recording is whole
    R  the reason it is rejected         O  JSON [errno, words]: its bytes could not be read
    M  memory ran out; the process ends
    C  JSON [begin s, end s, sums of products]: how alike a stretch's first two channels are
"""

import ctypes
import importlib
import json
import logging
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable

import av

from stages.label.base import RejectRecording
from stages.label.decoding.recording import Decoding, File, resampled, to_int16
from stages.signal.rates import HOP_SAMPLES

PR_SET_PDEATHSIG = 1


def answer(request: dict, send: Callable[[bytes, bytes], None]) -> None:
    """Decode one recording. Raises `RejectRecording`, `OSError` (its bytes), `MemoryError`."""
    file = File(os.fsencode(request["path"]))
    decoding, samples = None, 0
    try:
        decoding = Decoding(file, request["max_s"])
        blocks = decoding.blocks(lambda facts: send(b"H", json.dumps(facts).encode()))
        for block in resampled(blocks, request["rate_hz"], request["resampler"]):
            samples += len(block)
            while decoding.channels:
                send(b"C", json.dumps(decoding.channels.pop(0)).encode())
            send(b"B", to_int16(block).data)
        if samples == 0:
            raise RejectRecording("0 samples decoded")
        if samples < HOP_SAMPLES:
            one = "1 sample" if samples == 1 else f"{samples} samples"
            raise RejectRecording(f"{one} at 24 kHz: shorter than one label frame ({HOP_SAMPLES})")
    finally:
        if decoding is not None:
            decoding.close()
        file.close()
        if file.error is not None:  # whatever libav made of it
            raise file.error
    end = {
        "decoded_s": round(decoding.decoded_s, 6),
        "damaged_packets": decoding.damaged,
        "changes": decoding.changes,
    }
    send(b"E", json.dumps(end).encode())


def serve(send: Callable[[bytes, bytes], None]) -> None:
    """Answer requests until stdin ends. Any other exception is a bug: it ends the process, and the guard
    tells."""
    hook = os.environ.get("OVERTONE_TEST_DECODER")  # tests: module:function, called with each path
    if hook:
        module, _, function = hook.partition(":")
        hook = getattr(importlib.import_module(module), function)
    send(b"S", b"")
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        try:
            if hook:
                hook(request["path"])
            answer(request, send)
        except RejectRecording as refused:
            send(b"R", str(refused).encode("utf-8", "backslashreplace"))
        except MemoryError:
            send(b"M", b"")
            return  # what is left of this heap is not worth trusting
        except OSError as error:
            send(b"O", json.dumps([error.errno, error.strerror or str(error)]).encode())


def main() -> None:
    memory_bytes, parent = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to die with it
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    av.logging.set_level(av.logging.ERROR)
    # Without a handler all of it goes to stderr, whose last line is given as the reason of a crash.
    logging.getLogger("libav").addHandler(logging.NullHandler())
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not speak the protocol

    def send(kind: bytes, payload: bytes | memoryview) -> None:
        out.write(
            struct.pack("<cI", kind, payload.nbytes if isinstance(payload, memoryview) else len(payload))
        )
        out.write(payload)
        out.flush()

    try:
        serve(send)
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more


if __name__ == "__main__":
    main()
