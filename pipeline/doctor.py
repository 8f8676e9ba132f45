"""`overtone doctor`: whether labels and training can run here."""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

GIB = 2**30
LIMIT_S = 8.0  # waited for torch, S3 and Ray together
PACKAGES = {  # module: extra of pyproject.toml, use
    "torch": ("", "labels and training"),
    "ray": ("", "labels and training (`labels --plain` and `python -m stages.pretrain` go without)"),
    "av": ("", "decoding audio"),
    "duckdb": ("", "planning shards"),
    "encodec": ("", "comparing EnCodec's labels"),
    "deepspeed": ("[train]", "training"),
    "matplotlib": ("[train]", "curves of training"),
    "tensorboard": ("[train]", "watch.tensorboard"),
    "plotly": ("[report]", "the page of `stats` (--no-page goes without)"),
}
OPTIONAL = ("ray", "encodec", "tensorboard", "plotly")


class Check(NamedTuple):
    name: str
    fine: bool
    text: str
    needed: bool = True  # without it labels or training cannot run

    def __str__(self) -> str:
        return f"{'✓' if self.fine else '✗' if self.needed else '!'} {self.name:<12} {self.text}"


def doctor(s3: str | None, as_json: bool) -> int:
    found = list(_checks(s3))
    ok = all(check.fine for check in found if check.needed)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [check._asdict() for check in found]}, indent=1))
    else:
        print(*found, sep="\n")
    return 0 if ok else 1


def _checks(s3: str | None) -> Iterator[Check]:
    yield Check("python", True, platform.python_version())
    yield Check("overtone", True, _version("overtone") or "not installed, run from its folder")
    for name in PACKAGES:
        version = _version(name)
        yield Check(name, bool(version), version or remedy(name), name not in OPTIONAL)
    # In processes, at the same time: torch takes seconds, and nothing else ends a look-up that hangs.
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        looks = (("GPU", _gpu, ()), ("S3", _s3, (s3,)), ("Ray", _ray, ()))
        begun = [(name, pool.apply_async(look, arguments)) for name, look, arguments in looks]
        deadline = time.monotonic() + LIMIT_S
        for name, answer in begun:
            try:
                yield Check(name, True, answer.get(max(0.0, deadline - time.monotonic())))
            except multiprocessing.TimeoutError:
                # torch may be that slow, and nothing needs a GPU
                yield Check(name, False, f"no answer within {LIMIT_S:.0f} s", name != "GPU")
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                yield Check(name, False, str(error).splitlines()[0])
    yield from _machine()


def remedy(module: str) -> str:
    name = module.partition(".")[0]
    extra, use = PACKAGES.get(name, ("[all]", "this command"))
    return f"{name} is not installed, needed for {use}: pip install 'overtone{extra}'"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str:
    import torch

    cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    names = "; ".join(f"{card.name}, {card.total_memory / GIB:.0f} GiB" for card in cards)
    return names or "none that torch can use: everything runs on the CPU"


def _s3(s3: str | None) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        url = urlsplit(endpoint)
        port = url.port or (80 if url.scheme == "http" else 443)
        try:
            socket.create_connection((url.hostname or "", port), LIMIT_S / 2).close()
        except OSError as error:
            raise ValueError(f"AWS_ENDPOINT_URL {endpoint} does not answer: {error}") from None
    if s3:
        from stages.shards.storage import Storage

        storage = Storage(s3)
        if not storage.fs.get_file_info(storage.base.split("/")[0]).type:
            raise ValueError(f"{s3}: there is no such bucket")
    return f"{s3 or endpoint} answers" if s3 or endpoint else "not configured"


def _ray() -> str:
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return "started on this machine: RAY_ADDRESS names no cluster"
    from cluster.session import reachable

    reachable(address)
    return f"RAY_ADDRESS {address} answers"


def _machine() -> Iterator[Check]:
    for path in dict.fromkeys((os.getcwd(), tempfile.gettempdir())):
        free = shutil.disk_usage(path).free
        yield Check("disk", free >= GIB, f"{free / GIB:.1f} GiB free in {path}")
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    shm = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for name, fine, text, otherwise in (
        ("C++ compiler", compiler, compiler, "torch.compile and DeepSpeed's own operators need one"),
        ("Chromium", browser, browser, "only the tests of the page need it"),
        ("/dev/shm", shm >= GIB, f"{shm / GIB:.1f} GiB", "below 1 GiB Ray keeps objects on disk, slower"),
        ("open files", files >= 8192, str(files), "Ray recommends 8192 (ulimit -n 65535)"),
    ):
        yield Check(name, bool(fine), text if fine else f"{text or 'none'}: {otherwise}", needed=False)
