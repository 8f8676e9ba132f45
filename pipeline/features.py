"""`overtone features DIR AUDIO… --out PLACE`: representations of audio files.

Every recording's features are a file of their own, of which PLACE is the folder, or which are joined to PLACE
when all are there. A run that was stopped finds them again."""

import contextlib
import hashlib
import multiprocessing
import os
import queue
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from pipeline import hearing
from stages.evaluate import feature_files, features
from stages.evaluate.features import Choices
from stages.evaluate.run import open_backbone
from stages.label.base import ReadError, RejectRecording
from stages.label.decoding.process import DecoderProcess
from stages.label.decoding.source import quick_hash
from stages.label.scan.listing import EXTENSIONS
from stages.pretrain.model.backbone import Backbone
from stages.shards.names import printable
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

JOINED = (".safetensors", ".parquet")  # endings of a PLACE that is one file


@dataclass(frozen=True)
class Job:
    """What every process is told."""

    place: str  # of the model
    checkpoint: str
    device: str | None
    batch: int
    choices: Choices
    parts: Storage
    about: dict[str, str]  # the choices and the weights: with the audio's hash, what a part was made from


class Item(NamedTuple):
    path: str
    part: str  # name of its file


def extract(
    place: str,
    audio: list[str],
    layer: str,
    out: str,
    batch: int,
    device: str | None,
    checkpoint: str,
    processes: int = 1,
    **choices: str | float,
) -> int:
    """`choices`: of `Choices`, but the layer. Files that cannot be decoded are named and left out; the exit
    code is then 1. Raises ValueError."""
    net = open_backbone(place, checkpoint)
    chosen = Choices(_layer(layer, net.model.layers), **choices)
    about = chosen.about() | {"rate_hz": f"{RATE_HZ / net.model.hop_samples:g}", "weights": _digest(net)}
    storage, name, parts = _places(out)
    items = _items(audio, name is not None)
    names = {printable(item.path): item.part for item in items}
    if out.endswith(".parquet"):
        feature_files.split_parquet(storage, name, parts, names)
    job = Job(place, checkpoint, device, batch, chosen, parts, about)
    failed = {printable(path): why for path, why in _failures(job, items, processes, net).items()}
    for path, reason in failed.items():
        print(f"{path}: {reason}", file=sys.stderr)
    found = {path: part for path, part in names.items() if path not in failed}
    if not found:
        raise ValueError("none of the files could be decoded")
    first, (shape, _) = next((name, feature_files.header(parts, part)) for name, part in found.items())
    if name is not None:
        if out.endswith(".parquet"):
            feature_files.join_parquet(parts, found, storage, name)
        else:
            feature_files.join_safetensors(parts, found, storage, name, about | {"model": place})
        feature_files.remove(parts)
    unused = f"; {len(failed)} could not be used" if failed else ""
    print(f"{out}: {len(found)} recordings; {first}: {tuple(shape)}{unused}")
    return 1 if failed else 0


def _layer(text: str, layers: int) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) > layers:
        raise ValueError(f"--layer {text}: expected all, or 0 (the input embedding) to {layers}")
    return int(text)


def _digest(net: Backbone) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        if not name.startswith(("code_heads.", "cqt_head.")):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _places(out: str) -> tuple[Storage, str | None, Storage]:
    """Where OUT is, its name there (None: it is a folder), and where the parts are."""
    joined = out.endswith(JOINED)
    if not joined and not out.endswith("/") and Path(out).suffix and not Path(out).is_dir():
        raise ValueError(f"--out {out}: expected {' or '.join(JOINED)} at its end, or a folder's name and /")
    folder, name = os.path.split(out) if joined else (out, None)
    parts = f"{out}.parts" if joined else out
    try:
        if "://" not in out:
            os.makedirs(parts, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error}") from None
    return Storage(folder or "."), name, Storage(parts)


def _items(audio: list[str], joined: bool) -> list[Item]:
    """Parts of a folder are named as the audio below each AUDIO is."""
    found: dict[str, str] = {}
    for name in audio:
        for path in _paths(name):
            below = os.path.relpath(path, name) if os.path.isdir(name) else os.path.basename(path)
            key = hashlib.sha256(os.fsencode(path)).hexdigest()[:16] if joined else printable(below)
            found.setdefault(path, f"{key}.safetensors")
    owners: dict[str, str] = {}
    for path, part in found.items():
        if owners.setdefault(part, path) != path:
            raise ValueError(f"{path} and {owners[part]} would both be {part}: name a folder of both instead")
    return [Item(*item) for item in found.items()]


def _paths(name: str) -> list[str]:
    path = Path(name)
    if not path.exists():
        raise ValueError(f"{name}: there is no such file or folder")
    if not path.is_dir():
        return [name]
    inside = [p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in EXTENSIONS and p.is_file()]
    if not inside:
        raise ValueError(f"{name}: no audio files in this folder")
    return sorted(map(str, inside))


def _failures(job: Job, items: list[Item], processes: int, net: Backbone) -> dict[str, str]:
    """Makes the parts; why the others could not be made, by path."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "files", TimeRemainingColumn())
    console = Console(stderr=True, highlight=False)
    outcomes = _outcomes(job, 0, items, net) if processes == 1 else _of_processes(job, items, processes)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        seen = progress.track(outcomes, total=len(items), description="features")
        return {path: reason for path, reason in seen if reason is not None}


def _of_processes(job: Job, items: list[Item], count: int) -> Iterator[tuple[str, str | None]]:
    """As `_outcomes`, of each process's stripe."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    stripes = [items[rank::count] for rank in range(count)]
    ranks = [
        context.Process(target=_rank, args=(job, rank, count, own, told), daemon=True)
        for rank, own in enumerate(stripes)
        if own
    ]
    try:
        for process in ranks:
            process.start()
        left = len(items)
        while left:
            try:
                yield told.get(timeout=1)
                left -= 1
            except queue.Empty:
                if dead := [p.exitcode for p in ranks if p.exitcode]:
                    raise ValueError(
                        f"a process of --processes {count} ended with {dead[0]}, often for want of memory: "
                        "what is finished is kept; run the same command with fewer, or a smaller --batch"
                    ) from None
    finally:
        for process in ranks:
            process.terminate()
            process.join()


def _rank(job: Job, rank: int, count: int, items: list[Item], told: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    for outcome in _outcomes(job, rank, items, open_backbone(job.place, job.checkpoint)):
        told.put(outcome)
        if not multiprocessing.parent_process().is_alive():
            return


def _outcomes(job: Job, rank: int, items: list[Item], net: Backbone) -> Iterator[tuple[str, str | None]]:
    """Each path once, with the reason why it has no part."""
    device = job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    net = net.to(f"cuda:{rank % torch.cuda.device_count()}" if device == "cuda" else device)
    told: list[tuple[str, str | None]] = []
    joined, about = features.Joined(job.choices.pool), {}
    with contextlib.closing(DecoderProcess()) as decoder:
        heard = _windows(job, items, decoder, net, told, about)
        for group in features.batches(heard, job.batch):
            for window, part in zip(group, features.features(net, group, job.choices.layer), strict=True):
                if whole := joined.add(window, part):
                    told.append((window.name, _written(job, *about.pop(window.name), whole[1])))
            yield from told
            told.clear()
    yield from told


def _written(job: Job, part: str, about: dict[str, str], value: torch.Tensor) -> str | None:
    try:
        feature_files.write(job.parts, part, features.stored(value, job.choices.dtype), about)
    except ValueError as error:
        return str(error)
    return None


def _windows(
    job: Job, items: list[Item], decoder: DecoderProcess, net: Backbone, told: list, about: dict
) -> Iterator[features.Window]:
    """Of files without a part; the others are `told`, and those that cannot be decoded, with the reason."""
    for path, part in items:
        try:
            quick = quick_hash(path)
            about[path] = part, job.about | {"audio": quick}
            if (found := feature_files.header(job.parts, part)) and found[1] == about[path][1]:
                told.append((path, None))
                continue
            wave_N = hearing.wave(decoder, path, quick)
            yield from features.windows(path, wave_N, net, job.choices.window_s, job.choices.overlap_s)
        except (RejectRecording, ReadError, OSError, ValueError) as error:
            told.append((path, str(error)))
