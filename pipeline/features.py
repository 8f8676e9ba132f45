"""`overtone features DIR AUDIO… --layer all|N --out x.safetensors`: representations of audio files, with
progress."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from stages.evaluate.features import Joined, Window, batches, features, windows
from stages.evaluate.run import open_backbone
from stages.label.base import ReadError, RejectRecording
from stages.label.decoding.process import DecoderProcess
from stages.label.decoding.source import Source, quick_hash
from stages.label.scan.listing import EXTENSIONS
from stages.pretrain.model.backbone import Backbone
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

REQUEST = {"rate_hz": RATE_HZ, "resampler": "HQ", "max_s": 12 * 3600.0}


def extract(
    place: str,
    audio: list[str],
    layer: str,
    out: str,
    batch: int = 8,
    device: str | None = None,
    checkpoint: str = "latest",
) -> int:
    """Write one tensor a recording, named by its path: fp32 (T, D), or (layers + 1, T, D) for `all`.

    A file that cannot be decoded is named and left out; the exit code is then 1. Raises ValueError.
    """
    net = open_backbone(place, checkpoint)
    chosen = _layer(layer, net.model.layers)
    paths = list(_paths(audio))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    net = net.to(device)
    with tempfile.TemporaryDirectory(prefix=".overtone-features-", dir=_folder(out)) as scratch:
        found, failed = _extracted(net, paths, chosen, batch, Path(scratch))
        console = Console(stderr=True, highlight=False)
        for name, reason in failed.items():
            console.print(f"{name}: {reason}", markup=False)
        if not found:
            raise ValueError("none of the files could be decoded")
        _write(out, found, {"layer": layer, "rate_hz": "75", "model": place})
        print(
            f"{out}: {len(found)} recordings, {_shape(found)}"
            + (f"; {len(failed)} could not be used" if failed else "")
        )
    return 1 if failed else 0


def _extracted(
    net: Backbone, paths: list[str], layer: int | None, batch: int, scratch: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Features by path, which lie in files of `scratch`, and why the other paths have none."""
    found, failed, joined = {}, {}, Joined()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False)
    with (
        contextlib.closing(DecoderProcess()) as decoder,
        Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress,
    ):
        task = progress.add_task("features", total=len(paths))
        for group in batches(_windows(paths, decoder, net, failed), batch):
            for window, part in zip(group, features(net, group, layer), strict=True):
                if whole := joined.add(window, part):
                    found[whole[0]] = on_disk(whole[1], scratch / str(len(found)))
            progress.update(task, completed=len(found) + len(failed))
    return found, failed


def on_disk(value: Tensor, path: Path) -> Tensor:
    """The same values, mapped from a file and not held: a corpus's features are larger than memory."""
    value.numpy().tofile(path)
    return torch.from_file(str(path), shared=False, size=value.numel(), dtype=value.dtype).view(value.shape)


def _folder(out: str) -> str | None:
    """The folder of a local OUT, which must have room for it twice; for an object store the system's for
    temporary files."""
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
        if path.is_dir():
            inside = sorted(
                str(p) for p in path.rglob("*") if p.suffix.lower().lstrip(".") in EXTENSIONS and p.is_file()
            )
            if not inside:
                raise ValueError(f"{name}: no audio files in this folder")
            yield from inside
        elif path.exists():
            yield name
        else:
            raise ValueError(f"{name}: there is no such file or folder")


def _windows(
    paths: list[str], decoder: DecoderProcess, net: Backbone, failed: dict[str, str]
) -> Iterator[Window]:
    for path in dict.fromkeys(paths):
        try:
            about = os.stat(path)
            source = Source(path, os.fsencode(path), about.st_size, about.st_mtime_ns, quick_hash(path))
            wave_N = np.concatenate(
                [np.zeros(0, np.int16), *decoder.decode(source, os.fsencode(path), REQUEST, {})]
            )
            yield from windows(path, wave_N.astype(np.float32) / 32768, net)
        except (RejectRecording, ReadError, OSError, ValueError) as error:
            failed[path] = str(error)


def _write(out: str, found: dict[str, Tensor], about: dict[str, str]) -> None:
    folder, name = os.path.split(out)
    with Storage(folder or ".").attempt(name) as path:
        save_file(found, path, about)


def _shape(found: dict[str, Tensor]) -> str:
    name, first = next(iter(found.items()))
    frames = sum(value.shape[-2] for value in found.values())
    return f"{frames} frames; {name}: {tuple(first.shape)}"
