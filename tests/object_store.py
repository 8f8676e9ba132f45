"""Object stores for tests: a real S3 server on a port of this machine, and a slow store whose reads are told
by events."""

import bisect
import contextlib
import logging
import random
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow.fs as pafs
import pytest


class Faults:
    """What a store does beside serving: one request in so many is answered 503 (or, with `late_s`, every
    second one of those so much later), `before` sees each (method, path, the asking process's port), the
    bytes that it gives away are counted by name, and listings by their prefix."""

    def __init__(self, share: float = 0.0, seed: int = 0, late_s: float = 0.0):
        self.share, self._draw, self._lock = share, random.Random(seed), threading.Lock()
        self.before: Callable[[str, str, str], None] = lambda method, path, port: None
        self.late_s, self.late = late_s, 0
        self.refused, self.seen, self.given, self.listed = 0, Counter(), Counter(), Counter()
        self.put: set[str] = set()

    def made(self, part: str) -> int:
        """Objects that were put whose name has this part."""
        with self._lock:
            return len([name for name in self.put if part in name])

    def around(self, application: Callable) -> Callable:
        def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.before(method, path, environ["REMOTE_PORT"])
            with self._lock:
                self.seen[method] += 1
                query = urllib.parse.parse_qs(environ["QUERY_STRING"])
                if "list-type" in query and "continuation-token" not in query:
                    self.listed[query["prefix"][0]] += 1
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
                    self.put |= {path} if method == "PUT" else set()
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

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line for each request
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = reaching(address)
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


class Listed:
    """An S3 server that does nothing but list: one bucket of sorted keys, of 1,000 bytes each, a page of a
    thousand (`most`) a request. `latency_s` passes before each answer; `arrived` is called first."""

    def __init__(self, keys: Sequence[str], latency_s: float = 0.0, most: int = 1000):
        self.keys, self.latency_s, self.most, self.requests = keys, latency_s, most, 0
        self.arrived: Callable[[], None] = lambda: None

    def page(self, asked: dict[str, str]) -> str:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        token, most = unquote(asked.get("continuation-token", "")), int(asked.get("max-keys", self.most))
        encoding = "<EncodingType>url</EncodingType>" if "encoding-type" in asked else ""
        written = quote if encoding else escape
        keys, place, lines = self.keys, bisect.bisect_left(self.keys, token or prefix), []
        place = max(place, bisect.bisect_right(keys, asked.get("start-after", "")))
        while place < len(keys) and keys[place].startswith(prefix) and len(lines) < most:
            key = keys[place]
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                lines.append(
                    f"<CommonPrefixes><Prefix>{quote(prefix + head + cut)}</Prefix></CommonPrefixes>"
                )
                place = bisect.bisect_left(keys, prefix + head + chr(ord(cut) + 1))
            else:
                lines.append(
                    f"<Contents><Key>{written(key)}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>"
                    f"<Size>{0 if key.endswith('/') else 1000}</Size></Contents>"
                )
                place += 1
        more = place < len(keys) and keys[place].startswith(prefix)
        token = f"<NextContinuationToken>{quote(keys[place])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(lines)}"
            f"<KeyCount>{len(lines)}</KeyCount>{encoding}</ListBucketResult>"
        )

    def before(self, *below: str) -> Callable[[Callable], Callable]:
        """Of these prefixes, in front of an S3 application that has the rest, and would go through all keys
        of a bucket for each page."""

        def around(application: Callable) -> Callable:
            def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
                asked = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
                if "list-type" not in asked or not asked.get("prefix", "").startswith(below):
                    return application(environ, start_response)
                time.sleep(self.latency_s)
                start_response("200 OK", [("Content-Type", "application/xml")])
                return [self.page(asked).encode()]

            return answer

        return around

    @contextlib.contextmanager
    def served(self) -> Iterator[dict[str, str]]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802 - the base class's own name
                store.requests += 1
                store.arrived()
                time.sleep(store.latency_s)
                asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
                data = store.page(asked).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_HEAD(self) -> None:  # noqa: N802
                self.send_response(200 if self.path.count("/") == 1 else 404)  # no key is asked for by name
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = reaching(f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                yield environment
        finally:
            server.shutdown()
            server.server_close()


def reaching(address: str) -> dict[str, str]:
    """The usual variables."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
