"""`overtone features DIR AUDIO… --layer all|N --out x.safetensors`: representations of audio files."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from stages.evaluate import features
from stages.evaluate.run import open_backbone
from stages.label.base import ReadError, RejectRecording
from stages.label.decoding.process import DecoderProcess
from stages.label.decoding.source import Source, quick_hash
from stages.label.scan.listing import EXTENSIONS
from stages.pretrain.model.backbone import Backbone
from stages.shards.storage import Storage
from stages.signal.rates import FRAMES_PER_S, RATE_HZ

REQUEST = {"rate_hz": RATE_HZ, "resampler": "HQ", "max_s": 12 * 3600.0}


def extract(
    place: str, audio: list[str], layer: str, out: str, batch: int, device: str | None, checkpoint: str
) -> int:
    """A tensor a recording, named by its path: fp32 (T, D), or (layers + 1, T, D) for `all`. Files that
    cannot be decoded are named and left out; the exit code is then 1. Raises ValueError."""
    net = open_backbone(place, checkpoint)
    chosen = _layer(layer, net.model.layers)
    paths = list(dict.fromkeys(_paths(audio)))
    net = net.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix=".overtone-features-", dir=_folder(out)) as scratch:
        found, failed = _extracted(net, paths, chosen, batch, Path(scratch), console)
        for name, reason in failed.items():
            console.print(f"{name}: {reason}", markup=False)
        if not found:
            raise ValueError("none of the files could be decoded")
        folder, name = os.path.split(out)
        with Storage(folder or ".").attempt(name) as path:
            save_file(found, path, {"layer": layer, "rate_hz": str(FRAMES_PER_S), "model": place})
    name, first = next(iter(found.items()))
    frames = sum(value.shape[-2] for value in found.values())
    unused = f"; {len(failed)} could not be used" if failed else ""
    print(f"{out}: {len(found)} recordings, {frames} frames; {name}: {tuple(first.shape)}{unused}")
    return 1 if failed else 0


def _extracted(
    net: Backbone, paths: list[str], layer: int | None, batch: int, scratch: Path, console: Console
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Features by path, mapped from `scratch`, and why the other paths have none."""
    found, failed, joined = {}, {}, features.Joined()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "files", TimeRemainingColumn())
    with (
        contextlib.closing(DecoderProcess()) as decoder,
        Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress,
    ):
        paths = progress.track(paths, description="features")
        for group in features.batches(_windows(paths, decoder, net, failed), batch):
            for window, part in zip(group, features.features(net, group, layer), strict=True):
                if whole := joined.add(window, part):
                    found[whole[0]] = on_disk(whole[1], scratch / str(len(found)))
    return found, failed


def on_disk(value: Tensor, path: Path) -> Tensor:
    """The same values, mapped: a corpus's features are larger than memory."""
    value.numpy().tofile(path)
    return torch.from_file(str(path), shared=False, size=value.numel(), dtype=value.dtype).view(value.shape)


def _folder(out: str) -> str | None:
    """Of a local OUT, which needs twice the space for a while; None for an object store."""
    if "://" in out:
        return None
    folder = os.path.dirname(os.path.abspath(out))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error}") from None
    return folder


def _layer(text: str, layers: int) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) > layers:
        raise ValueError(f"--layer {text}: expected all, or 0 (the input embedding) to {layers}")
    return int(text)


def _paths(audio: list[str]) -> Iterator[str]:
    for name in audio:
        path = Path(name)
        if not path.exists():
            raise ValueError(f"{name}: there is no such file or folder")
        if not path.is_dir():
            yield name
            continue
        inside = [p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in EXTENSIONS and p.is_file()]
        if not inside:
            raise ValueError(f"{name}: no audio files in this folder")
        yield from sorted(map(str, inside))


def _windows(
    paths: Iterable[str], decoder: DecoderProcess, net: Backbone, failed: dict[str, str]
) -> Iterator[features.Window]:
    """Reasons of files that cannot be decoded go into `failed`."""
    for path in paths:
        try:
            about, encoded = os.stat(path), os.fsencode(path)
            source = Source(path, encoded, about.st_size, about.st_mtime_ns, quick_hash(path))
            parts = decoder.decode(source, encoded, REQUEST, {})
            wave_N = np.concatenate([np.zeros(0, np.int16), *parts])
            yield from features.windows(path, wave_N.astype(np.float32) / 32768, net)
        except (RejectRecording, ReadError, OSError, ValueError) as error:
            failed[path] = str(error)
