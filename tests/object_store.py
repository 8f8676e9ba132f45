"""Object stores for tests: a real S3 server on a port of this machine, and a slow store whose reads are told
by events."""

import contextlib
import random
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pyarrow.fs as pafs
import pytest


class Faults:
    """What a store does beside serving: one request in so many is answered 503 (or, with `late_s`, every
    second one of those so much later), `before` sees each (method, path, the asking process's port), and the
    bytes that it gives away are counted by name."""

    def __init__(self, share: float = 0.0, seed: int = 0, late_s: float = 0.0):
        self.share, self._draw, self._lock = share, random.Random(seed), threading.Lock()
        self.before: Callable[[str, str, str], None] = lambda method, path, port: None
        self.late_s, self.late = late_s, 0
        self.refused, self.seen, self.given = 0, Counter(), Counter()

    def around(self, application: Callable) -> Callable:
        def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.before(method, path, environ["REMOTE_PORT"])
            with self._lock:
                self.seen[method] += 1
                draw = self._draw.random()
                late = bool(self.late_s) and draw < self.share / 2
                refuse = not late and draw < self.share
                self.refused, self.late = self.refused + refuse, self.late + late
            if late:
                time.sleep(self.late_s)

            def counted(status: str, headers: list, *rest) -> Callable:
                length = next((value for name, value in headers if name.lower() == "content-length"), 0)
                with self._lock:
                    self.given[path] += int(length) if method == "GET" else 0
                return start_response(status, headers, *rest)

            if not refuse:
                return application(environ, counted)
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [
                b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            ]

        return answer


@contextlib.contextmanager
def served(
    *buckets: str, faults: Faults | None = None, around: Callable[[Callable], Callable] | None = None
) -> Iterator[dict[str, str]]:
    """An S3 server with these buckets. Within the block the usual variables name it, here and in processes
    begun here. `around`: what else stands before it."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    try:
        for bucket in buckets:
            urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
        application = around(application) if around else application
        server.app = faults.around(application) if faults else application
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            yield environment
    finally:
        server.shutdown()
        serving.join()


class SlowStore(pafs.LocalFileSystem):
    """The first read gives `first` bytes; those after it wait for `go`, tell by `asked` that they wait, and
    give at most `most`."""

    def __init__(self, first: int, patience_s: float, most: int | None = None):
        super().__init__()
        self.first, self.most, self.patience_s = first, most, patience_s
        self.reads, self.error = 0, None
        self.go, self.asked = threading.Event(), threading.Event()

    def open_input_stream(self, path, *rest):
        return _Stream(super().open_input_stream(path), self)


class _Stream:
    def __init__(self, source, store: SlowStore):
        self.source, self.store = source, store

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()

    def read(self, count: int) -> bytes:
        store = self.store
        store.reads += 1
        if store.reads == 1:
            return self.source.read(store.first)
        store.asked.set()
        assert store.go.wait(store.patience_s), "nobody let it go on: all bytes were waited for at once"
        if store.error:
            raise store.error
        return self.source.read(min(count, store.most or count))


class Gate:
    """Stands before a server on another port, and passes all bytes on until it is to hold them."""

    def __init__(self, address: str):
        host, port = address.removeprefix("http://").split(":")
        self._server, self._listening = (host, int(port)), socket.create_server(("127.0.0.1", 0))
        self.address = "http://{}:{}".format(*self._listening.getsockname())
        self._left, self.held, self._open = None, threading.Event(), threading.Event()
        self._open.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold_after(self, count: int) -> None:
        """No more than so many bytes of bodies come through; `held` tells when."""
        self.held.clear()
        self._open.clear()
        self._left = count

    def release(self) -> None:
        self._left = None
        self._open.set()

    def close(self) -> None:
        self.release()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._server)
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if (
                    counted and self._left is not None and len(data) > 4096
                ):  # less is a request without a body
                    if len(data) >= self._left:
                        self.held.set()
                        self._open.wait()
                    else:
                        self._left -= len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
