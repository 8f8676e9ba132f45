"""EnCodec's published weights: where they are found, and the one form in which we keep them.

They come as a state dict of the `encodec` package (encodec_24khz-d7cc33bc.th), or as transformers'
`EncodecModel` saves them (facebook/encodec_24khz). Both give the same canonical form on any machine: float32
safetensors bytes of `tensors(K)`, weight norm folded; their sha256 identifies the teacher."""

import hashlib
import math
import os
import sys
import threading
import urllib.request
from concurrent.futures import Future, wait
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stages.label.teachers.encodec_model import LEVELS, WIDTH

FILE = "encodec_24khz-d7cc33bc.th"  # encodec 0.1.1, model.py: the name has the first digits of the sha256
URL = f"https://dl.fbaipublicfiles.com/encodec/v0/{FILE}"  # encodec 0.1.1, model.py ROOT_URL
TIMEOUT_S = 5  # to reach the server, name look-up included
DIMENSION, CODES = 128, 1024  # encodec 0.1.1: SEANetEncoder, ResidualVectorQuantizer
# Of the package's names: what transformers calls them.
_RENAMED = {
    "encoder.model": "encoder.layers", ".conv.conv": ".conv", "quantizer.vq": "quantizer",
    "._codebook": ".codebook",
}  # fmt: skip


def layers() -> dict[str, tuple[str, tuple[int, int, int]]]:
    """Our name of each convolution → its place in the package's encoder, and (out, in, taps)."""
    found = {"first": ("0", (LEVELS[0][0], 1, 7))}
    for n, (width, stride) in enumerate(LEVELS):
        at = 1 + 3 * n
        found[f"level{n}.inner"] = (f"{at}.block.1", (width // 2, width, 3))
        found[f"level{n}.outer"] = (f"{at}.block.3", (width, width // 2, 1))
        found[f"level{n}.shortcut"] = (f"{at}.shortcut", (width, width, 1))
        found[f"level{n}.down"] = (f"{at + 2}", (2 * width, width, 2 * stride))
    return found | {"last": ("15", (DIMENSION, WIDTH, 7))}


def tensors(codebooks: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Canonical name of each tensor → its name in the package's state dict, and its shape."""
    found = {}
    for name, (place, shape) in layers().items():
        for part, own in ("weight", shape), ("bias", shape[:1]):
            found[f"{name}.{part}"] = (f"encoder.model.{place}.conv.conv.{part}", own)
    for part, own in ("weight", (4 * WIDTH, WIDTH)), ("bias", (4 * WIDTH,)):
        for gates in ("ih_l0", "hh_l0", "ih_l1", "hh_l1"):
            found[f"lstm.{part}_{gates}"] = (f"encoder.model.13.lstm.{part}_{gates}", own)
    for k in range(codebooks):
        found[f"codebook{k}"] = (f"quantizer.vq.layers.{k}._codebook.embed", (CODES, DIMENSION))
    return found


def locate(path: str | None, codebooks: int) -> bytes:
    """Canonical bytes of the weights at `path` (a torch or safetensors file, or a folder with
    `model.safetensors`), else in torch hub's cache, else downloaded into it."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if path is None and not cached.exists():
        try:
            _download(cached)
        except OSError as error:  # URLError, timeouts and refusals are OSErrors
            raise ValueError(
                f"EnCodec's weights were not found: no path was given, {cached} does not exist, and {URL} "
                f"could not be downloaded ({error}). Give `--set run.weights=PATH` ({FILE} or a folder of "
                f"facebook/encodec_24khz), or put {FILE} at {cached}, or run where the download works."
            ) from error
    state = _read(cached if path is None else Path(path).expanduser())
    return canonical(state, codebooks, str(path or cached))


def canonical(state: dict[str, Tensor], codebooks: int, source: str) -> bytes:
    transformers, found = any(name.startswith("encoder.layers.") for name in state), {}
    for name, (there, shape) in tensors(codebooks).items():
        for package, renamed in _RENAMED.items() if transformers else ():
            there = there.replace(package, renamed)
        found[name] = _folded(state, there, shape, source)
        if name.startswith("codebook") and (found[name] == found[name][0]).all():
            raise ValueError(
                f"{source}: expected trained codebooks, saw {CODES} equal codes in {name}, as in an "
                f"EncodecModel made with pretrained=False. Use the published weights."
            )
    return save(found)


def _folded(state: dict[str, Tensor], name: str, shape: tuple[int, ...], source: str) -> Tensor:
    """The tensor as it is, or with weight norm g · v / |v| folded.

    In float64 from exactly rounded sums: torch's own float32 folding differs between machines in some last
    bits, and the identity with them."""
    if name in state or not name.endswith(".weight"):
        return _take(state, [name], shape, source)
    original = name.replace(".weight", ".parametrizations.weight.original")
    g = _take(state, [f"{name}_g", f"{original}0"], (shape[0], 1, 1), source)
    v = _take(state, [f"{name}_v", f"{original}1"], shape, source)
    squares = v.double().square().flatten(1)  # exact: a float32 squared fits a float64
    norm = torch.tensor([math.fsum(row) for row in squares.tolist()], dtype=torch.float64).sqrt()
    return (v.double() * (g.double() / norm[:, None, None])).float().contiguous()


def _take(state: dict[str, Tensor], names: list[str], shape: tuple[int, ...], source: str) -> Tensor:
    name = next((name for name in names if name in state), None)
    if name is None:
        wanted = f"expected a tensor named {' or '.join(names)} (EnCodec 24 kHz)"
        raise ValueError(f"{source}: {wanted}, saw {len(state)} tensors without it.")
    tensor = state[name]
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        seen = f"{tuple(tensor.shape)} {tensor.dtype}"
        raise ValueError(f"{source}: {name}: expected {shape} floating point, saw {seen}.")
    if not tensor.isfinite().all():
        raise ValueError(f"{source}: {name}: expected finite numbers, saw NaN or infinity.")
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        path /= "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: expected EnCodec's weights (run.weights), saw no such file.")
    if path.name == FILE:
        with path.open("rb") as file:
            _check(hashlib.file_digest(file, "sha256").hexdigest(), path)
    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: expected EnCodec's weights as a torch or safetensors file, saw {path.stat().st_size} "
            f"bytes that are neither, or cut short ({reason})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        kind = type(state).__name__
        raise ValueError(f"{path}: expected a state dict (names → tensors), saw a {kind} of others.")
    return state


def _check(seen: str, source: object) -> None:
    expected = Path(FILE).stem.split("-")[1]
    if not seen.startswith(expected):
        raise ValueError(
            f"{source}: expected a sha256 beginning {expected}, saw {seen[:16]}…: a damaged or other file."
        )


def _download(target: Path) -> None:
    """Fetch `URL` to `target`, whole and checked, or leave nothing."""
    response = _reach()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{FILE}.{os.getpid()}.part")
    total, digest = int(response.headers.get("Content-Length") or 0), hashlib.sha256()
    try:
        with response, part.open("wb") as file:
            while block := response.read(1 << 20):
                digest.update(block)
                file.write(block)
                print(f"\r{FILE}: {file.tell() >> 20} of {total >> 20} MiB", end="", file=sys.stderr)
        print(file=sys.stderr)
        _check(digest.hexdigest(), URL)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _reach() -> HTTPResponse:
    """An open response within `TIMEOUT_S`. In a thread, since no timeout covers the name look-up."""
    answer = Future()

    def request() -> None:
        try:
            answer.set_result(urllib.request.urlopen(URL, timeout=TIMEOUT_S))
        except OSError as error:
            answer.set_exception(error)
        except HTTPException as error:
            answer.set_exception(ConnectionError(f"no HTTP answer: {error!r}"))

    threading.Thread(target=request, daemon=True).start()
    if not wait([answer], TIMEOUT_S + 1).done:
        raise TimeoutError(f"no answer within {TIMEOUT_S} s")
    return answer.result()
