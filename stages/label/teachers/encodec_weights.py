"""EnCodec's published weights: where they are found, and the one form in which we keep them.

Sources: the official `encodec_24khz-d7cc33bc.th` (state dict of the `encodec` package), or
`facebook/encodec_24khz` as transformers' `EncodecModel` saves it (model.safetensors). The canonical form is
safetensors bytes of `shapes(K)`: the encoder with weight norm folded, the LSTM, K codebooks, all float32.
Both sources give the same bytes on any machine; their sha256 identifies the teacher."""

import hashlib
import math
import os
import queue
import sys
import threading
import urllib.request
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


def shapes(codebooks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the canonical form."""
    found = {}
    for name, (_, shape) in layers().items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for n in range(2):
        for gates in ("ih", "hh"):
            weight, bias = f"lstm.weight_{gates}_l{n}", f"lstm.bias_{gates}_l{n}"
            found |= {weight: (4 * WIDTH, WIDTH), bias: (4 * WIDTH,)}
    return found | {f"codebook{k}": (CODES, DIMENSION) for k in range(codebooks)}


def locate(path: str | None, codebooks: int) -> bytes:
    """Canonical bytes of the weights at `path`, else in torch hub's cache, else downloaded into it.

    `path`: a torch file of the official layout, a safetensors file of transformers' layout, or a folder with
    `model.safetensors`. Raises ValueError naming path, expected and seen."""
    if path is not None:
        return canonical(_read(Path(path).expanduser()), codebooks, str(path))
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not cached.exists():
        try:
            _download(cached)
        except OSError as error:  # URLError, timeouts and refusals are OSErrors
            raise ValueError(
                f"EnCodec's weights were not found: no path was given, {cached} does not exist, and {URL} "
                f"could not be downloaded ({error}). Give `--set run.weights=PATH` ({FILE} or a folder of "
                f"facebook/encodec_24khz), or put {FILE} at {cached}, or run where the download works."
            ) from error
    return canonical(_read(cached), codebooks, str(cached))


def canonical(state: dict[str, Tensor], codebooks: int, source: str) -> bytes:
    """Safetensors bytes of `shapes(codebooks)` from a state dict of either layout; messages name `source`."""
    transformers = any(name.startswith("encoder.layers.") for name in state)
    root, inner = ("encoder.layers", ".conv") if transformers else ("encoder.model", ".conv.conv")
    books = "quantizer.layers.{}.codebook.embed" if transformers else "quantizer.vq.layers.{}._codebook.embed"
    found = {}
    for name, (place, shape) in layers().items():
        at = f"{root}.{place}{inner}"
        found[f"{name}.weight"] = _folded(state, at, shape, source)
        found[f"{name}.bias"] = _take(state, [f"{at}.bias"], shape[:1], source)
    for name, shape in shapes(codebooks).items():
        if name.startswith("lstm."):
            found[name] = _take(state, [f"{root}.13.{name}"], shape, source)
        elif name.startswith("codebook"):
            found[name] = _take(state, [books.format(name.removeprefix("codebook"))], shape, source)
            if (found[name] == found[name][0]).all():
                raise ValueError(
                    f"{source}: expected trained codebooks, saw {CODES} equal codes in {name}, as in an "
                    f"EncodecModel made with pretrained=False. Use the published weights."
                )
    return save(found)


def _folded(state: dict[str, Tensor], at: str, shape: tuple[int, int, int], source: str) -> Tensor:
    """The weight g · v / |v| (weight norm over all but the first dimension), or a plain weight as it is.

    In float64 from exactly rounded sums, so that the float32 bits, and the identity, are the same on every
    machine; torch's own float32 folding differs in some last bits."""
    if f"{at}.weight" in state:
        return _take(state, [f"{at}.weight"], shape, source)
    g = _take(state, [f"{at}.weight_g", f"{at}.parametrizations.weight.original0"], (shape[0], 1, 1), source)
    v = _take(state, [f"{at}.weight_v", f"{at}.parametrizations.weight.original1"], shape, source)
    squares = v.double().square().flatten(1)  # exact: a float32 squared fits a float64
    norm = torch.tensor([math.fsum(row) for row in squares.tolist()], dtype=torch.float64).sqrt()
    return (v.double() * (g.double() / norm[:, None, None])).float().contiguous()


def _take(state: dict[str, Tensor], names: list[str], shape: tuple[int, ...], source: str) -> Tensor:
    for name in names:
        if name in state:
            tensor = state[name]
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                seen = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"{source}: {name}: expected {shape} floating point, saw {seen}.")
            if not tensor.isfinite().all():
                raise ValueError(f"{source}: {name}: expected finite numbers, saw NaN or infinity.")
            return tensor.detach().to("cpu", torch.float32).contiguous()
    wanted = " or ".join(names)
    raise ValueError(
        f"{source}: expected a tensor named {wanted} (EnCodec 24 kHz), saw {len(state)} tensors without it."
    )


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict of either layout; ValueError if the file is missing, damaged or another."""
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
    """Compare a sha256 with the digits in the published name."""
    expected = Path(FILE).stem.split("-")[1]
    if not seen.startswith(expected):
        raise ValueError(
            f"{source}: expected a sha256 beginning {expected}, saw {seen[:16]}…: a damaged or other file."
        )


def _download(target: Path) -> None:
    """Fetch `URL` to `target`, whole and checked, or leave nothing. Raises OSError, ValueError."""
    response = _reach(URL)
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


def _reach(url: str) -> HTTPResponse:
    """An open response within `TIMEOUT_S`. In a thread, since no timeout covers the name look-up."""
    answers = queue.SimpleQueue()

    def request() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=TIMEOUT_S))
        except OSError as error:
            answers.put(error)
        except HTTPException as error:
            answers.put(ConnectionError(f"no HTTP answer: {error!r}"))

    threading.Thread(target=request, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT_S + 1)
    except queue.Empty:
        answer = TimeoutError(f"no answer within {TIMEOUT_S} s")
    if isinstance(answer, OSError):
        raise answer
    return answer
