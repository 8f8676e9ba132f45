"""`overtone probe MODEL… --tasks DIR`: what a frozen model's features are worth, beside plain spectra."""

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from pipeline import hearing
from stages.evaluate.probe import encoders, protocol, table, task
from stages.evaluate.probe.cache import Cache, Part, computed, parts
from stages.evaluate.probe.encoders import Encoder
from stages.evaluate.probe.protocol import Result
from stages.evaluate.probe.sets import SETS
from stages.evaluate.probe.task import Task
from stages.label.base import ReadError, RejectRecording
from stages.label.decoding.process import DecoderProcess
from stages.shards.storage import Storage

KINDS = {"key": "key", "beats": "beats"}  # of bundled tasks; the others are classes
BUNDLED = Path(__file__).resolve().parents[1] / "examples" / "probes" / "tasks"


@dataclass(frozen=True)
class ProbeOptions:
    tasks: str | None = None  # folder of the bundled tasks' audio
    only: tuple[str, ...] = ()  # names of tasks; empty: every one
    sets: tuple[str, ...] = ()  # NAME=DIR of public sets
    probes: tuple[str, ...] = ()  # empty: protocol.PROBES
    spectra: bool = True
    during: bool = False
    out: str | None = None
    cache: str | None = None
    device: str | None = None
    checkpoint: str = "latest"
    lists: str | None = None  # folder of the tasks' CSV files; None: the bundled ones


def probe(places: Sequence[str], options: ProbeOptions) -> int:
    """Writes table.md and results.json, and prints the table's head. Raises ValueError."""
    unknown = [name for name in options.probes if name not in protocol.PROBES]
    if unknown:
        raise ValueError(f"--probe {unknown[0]}: expected one of {', '.join(protocol.PROBES)}")
    asked = tasks(options)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.during:
        from pipeline.probe_during import checkpoints

        models = checkpoints(places, device)
    else:
        models = opened(places, options.checkpoint, device)
    used = models + [encoders.spectrum(name) for name in encoders.SPECTRA if options.spectra]
    used = list({encoder.identity: encoder for encoder in used}.values())
    folder = Path(options.cache or Path(options.tasks or options.sets[0].partition("=")[2]) / "features")
    results = measured(asked, used, Cache(folder), options.probes or protocol.PROBES)
    own = [encoder.name for encoder in models if not encoder.name.startswith(encoders.UNTRAINED)]
    out = Storage(options.out or (Path(places[0]) / "probe"))
    text = table.written(results, own, [f"{t.name}: {t.note}" for t in asked if t.note])
    out.write("results.json", json.dumps([asdict(row) for row in results], indent=1).encode())
    out.write("table.md", text.encode())
    if options.during:
        from pipeline.probe_during import draw

        draw(results, Path(places[0]), out)
    print(table.shown(results, own))
    print(f"every layer, pooling and probe: {out.path('table.md')}")
    return 0


def opened(places: Sequence[str], checkpoint: str, device: str) -> list[Encoder]:
    """Each model and the same untrained, by names that differ: a table's rows are told apart by them."""
    names = [Path(place).resolve().name for place in places]
    names = [str(p) if names.count(n) > 1 else n for p, n in zip(places, names, strict=True)]
    found = [encoders.opened(p, checkpoint, device, n) for p, n in zip(places, names, strict=True)]
    several = len({plain.identity for _, plain in found}) > 1
    return [
        encoder if encoder is model or not several else replace(encoder, name=f"{encoder.name} {model.name}")
        for model, plain in found
        for encoder in (model, plain)
    ]


def tasks(options: ProbeOptions) -> list[Task]:
    """ValueError for wrong names, and for audio that is not there."""
    if not options.tasks and not options.sets:
        raise ValueError("no task: give --tasks DIR (`make probe-sets` fetches it), or --set NAME=DIR")
    lists = Path(options.lists or BUNDLED)
    found = {path.stem: path for path in sorted(lists.glob("*.csv"))} if options.tasks else {}
    if options.tasks and not found:
        raise ValueError(f"{lists} holds no list of items (*.csv)")
    public = {}
    for text in options.sets:
        name, equals, folder = text.partition("=")
        if name not in SETS or not equals:
            raise ValueError(f"--set {text}: expected NAME=DIR, with a name of {', '.join(SETS)}")
        public |= {own.name: own for own in SETS[name].read(Path(folder))}
    for name in options.only:
        if name not in found and name not in public:
            raise ValueError(f"--task {name}: expected one of {', '.join([*found, *public])}")
    chosen = options.only or (*found, *public)
    root = Path(options.tasks or "")
    return [
        public[name] if name in public else task.read(found[name], KINDS.get(name, "class"), root)
        for name in chosen
    ]


def measured(
    asked: Sequence[Task], used: Sequence[Encoder], cache: Cache, probes: Sequence[str]
) -> list[Result]:
    """Every encoder on every task. Features and results that are in the cache are not computed again."""
    console = Console(stderr=True, highlight=False)
    work = [(own, part) for own in asked for part in parts(own)]
    missing = [(own, part, [e for e in used if not cache.has(e, part)]) for own, part in work]
    files = sum(len(part.files) for _, part, lacking in missing if lacking)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        if files:
            bar = progress.add_task("features, files", total=files)
            with contextlib.closing(DecoderProcess()) as decoder:
                for own, part, lacking in missing:
                    if lacking:
                        waves = list(_waves(decoder, own, part))
                        for encoder in lacking:
                            cache.keep(encoder, part, computed(encoder, own, part, waves))
                        progress.advance(bar, len(part.files))
        found = []
        for own, encoder in progress.track([(t, e) for t in asked for e in used], description="probes"):
            found += judged(own, encoder, cache, probes)
    return found


def _waves(decoder: DecoderProcess, own: Task, part: Part) -> Iterator[np.ndarray]:
    """ValueError naming a file that cannot be decoded: a probe on fewer files is another probe."""
    for name in part.files:
        path = own.root / name
        try:
            wave_N = hearing.wave(decoder, str(path))
        except (RejectRecording, ReadError, OSError) as error:
            raise ValueError(f"task {own.name}: {path} cannot be decoded: {error}") from None
        yield wave_N


def judged(own: Task, encoder: Encoder, cache: Cache, probes: Sequence[str]) -> list[Result]:
    """From the cache if the same features, targets and folds were judged before."""
    found = parts(own)
    facts = [protocol.VERSION, encoder.identity, [part.identity for part in found], list(probes)]
    facts += [own.name, own.kind, [(item.group, item.fold, item.target) for item in own.items]]
    name = f"results/{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    storage = Storage(cache.folder)
    if storage.exists(name):
        return [replace(row, encoder=encoder.name) for row in _read(storage.read(name))]
    rows = protocol.judge(own, encoder.name, encoder.layers, cache.features(encoder, own, found), probes)
    storage.write(name, json.dumps([asdict(row) for row in rows]).encode())
    return rows


def _read(data: bytes) -> list[Result]:
    lists = [field.name for field in dataclasses.fields(Result) if field.name.startswith("item_")]
    return [Result(**row | {name: tuple(row[name]) for name in lists}) for row in json.loads(data)]
