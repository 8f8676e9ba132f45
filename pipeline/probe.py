"""`overtone probe MODEL… --audio DIR`: what a frozen encoder's features are worth, beside plain spectra."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from stages.evaluate.probe import encoders, protocol, task
from stages.evaluate.probe.cache import Cache, Part, computed, parts
from stages.evaluate.probe.encoders import Encoder
from stages.evaluate.probe.task import Task
from stages.label.base import ReadError, RejectRecording
from stages.label.decoding.process import DecoderProcess
from stages.label.decoding.source import Source, quick_hash
from stages.signal.rates import RATE_HZ

REQUEST = {"rate_hz": RATE_HZ, "resampler": "HQ", "max_s": 12 * 3600.0}
KINDS = {"key": "key", "beats": "beats"}  # of bundled tasks; the others are classes
BUNDLED = Path(__file__).resolve().parents[1] / "examples" / "probes" / "tasks"


@dataclass(frozen=True)
class ProbeOptions:
    audio: str  # folder of the tasks' audio
    tasks: tuple[str, ...] = ()  # names; empty: every one
    probes: tuple[str, ...] = protocol.PROBES
    spectra: bool = True
    cache: str | None = None  # AUDIO/features
    device: str | None = None
    checkpoint: str = "latest"
    folds: Path = BUNDLED  # folder of the tasks' CSV files


def bundled(options: ProbeOptions) -> list[Task]:
    found = {path.stem: path for path in sorted(options.folds.glob("*.csv"))}
    unknown = [name for name in options.tasks if name not in found]
    if unknown:
        raise ValueError(f"--task {unknown[0]}: expected one of {', '.join(found)}")
    chosen = options.tasks or tuple(found)
    return [task.read(found[name], KINDS.get(name, "class"), Path(options.audio)) for name in chosen]


def features(asked: Sequence[Task], used: Sequence[Encoder], cache: Cache, console: Console) -> None:
    """Every encoder's features of every task into the cache: each file is decoded once for all of them."""
    work = [(own, part) for own in asked for part in parts(own)]
    missing = [(own, part, [e for e in used if not cache.has(e, part)]) for own, part in work]
    missing = [row for row in missing if row[2]]
    total = sum(len(part.files) for _, part, _ in missing)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "files", TimeRemainingColumn())
    with (
        contextlib.closing(DecoderProcess()) as decoder,
        Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task("features", total=total)
        for own, part, lacking in missing:
            waves = list(_waves(decoder, own, part))
            for encoder in lacking:
                cache.keep(encoder, part, computed(encoder, own, part, waves))
            progress.update(bar, advance=len(part.files))


def _waves(decoder: DecoderProcess, own: Task, part: Part) -> Iterator[np.ndarray]:
    """ValueError naming a file that cannot be decoded: a probe on fewer files is another probe."""
    for name in part.files:
        path = own.root / name
        try:
            about, encoded = path.stat(), os.fsencode(path)
            source = Source(str(path), encoded, about.st_size, about.st_mtime_ns, quick_hash(str(path)))
            found = decoder.decode(source, encoded, REQUEST, {})
            wave_N = np.concatenate([np.zeros(0, np.int16), *found])
        except (RejectRecording, ReadError, OSError) as error:
            raise ValueError(f"task {own.name}: {path} cannot be decoded: {error}") from None
        yield wave_N.astype(np.float32) / 32768


def probe(places: Sequence[str], options: ProbeOptions) -> list[protocol.Result]:
    console = Console(stderr=True, highlight=False)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    asked = bundled(options)
    used = []
    for place in places:
        used += encoders.opened(place, options.checkpoint, device)
    if options.spectra:
        used += [encoders.spectrum(name) for name in encoders.SPECTRA]
    used = list({encoder.identity: encoder for encoder in used}.values())
    cache = Cache(Path(options.cache or Path(options.audio) / "features"))
    features(asked, used, cache, console)
    return [row for own in asked for encoder in used for row in judged(cache, own, encoder, options.probes)]


def judged(cache: Cache, own: Task, encoder: Encoder, probes: tuple[str, ...]) -> list[protocol.Result]:
    """From the cache of results, which depend on features, targets and folds."""
    found = protocol.judge(
        own, encoder.name, encoder.layers, cache.features(encoder, own, parts(own)), probes
    )
    return [replace(row, encoder=encoder.name) for row in found]
