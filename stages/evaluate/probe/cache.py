"""Features of a task's files by an encoder, kept on disk, some audio files a part. A part is named by what it
depends on: a probe that was stopped goes on, and an edited file or another encoder is computed anew."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from stages.evaluate.probe.encoders import Encoder
from stages.evaluate.probe.pooling import Features, framed, frames_joined, pooled
from stages.evaluate.probe.task import Task
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

FILES = 32  # audio files of one part
VERSION = 1  # of pooling.py's arithmetic


@dataclass(frozen=True)
class Part:
    """Some files of one task, and their items' numbers in it."""

    files: tuple[str, ...]
    items: tuple[tuple[int, ...], ...]  # of each file
    identity: str


def parts(task: Task) -> list[Part]:
    """ValueError naming files that are not there."""
    by_file: dict[str, list[int]] = {}
    for number, item in enumerate(task.items):
        by_file.setdefault(item.audio, []).append(number)
    missing = [name for name in by_file if not (task.root / name).is_file()]
    if missing:
        raise ValueError(
            f"task {task.name}: {len(missing)} of {len(by_file)} files are not below {task.root}, such as "
            f"{missing[0]}: fetch the task's audio, or name the folder that holds it"
        )
    names, found = list(by_file), []
    for first in range(0, len(names), FILES):
        files = tuple(names[first : first + FILES])
        facts = []
        for name in files:
            about = (task.root / name).stat()
            spans = [(task.items[i].start_s, task.items[i].end_s) for i in by_file[name]]
            facts.append([name, about.st_size, about.st_mtime_ns, spans])
        told = json.dumps([VERSION, task.kind == "beats", facts])
        identity = hashlib.sha256(told.encode()).hexdigest()[:16]
        found.append(Part(files, tuple(tuple(by_file[name]) for name in files), identity))
    return found


class Cache:
    def __init__(self, folder: Path):
        self.folder, self._storage = folder, Storage(folder)

    def _name(self, encoder: Encoder, part: Part) -> str:
        return f"{encoder.identity}/{part.identity}.safetensors"

    def has(self, encoder: Encoder, part: Part) -> bool:
        return self._storage.exists(self._name(encoder, part))

    def keep(self, encoder: Encoder, part: Part, arrays: dict[str, np.ndarray]) -> None:
        with self._storage.attempt(self._name(encoder, part)) as path:
            save_file(arrays, path)

    def features(self, encoder: Encoder, task: Task, found: Iterable[Part]) -> Features:
        """ValueError for a damaged part, which is deleted."""
        means: list = [None] * len(task.items)
        deviations, frames = means.copy(), means.copy()
        for part in found:
            name = self._name(encoder, part)
            try:
                arrays = load_file(self.folder / name)
            except (SafetensorError, OSError) as error:
                self._storage.delete(name)
                again = "it was deleted, the same command computes it again"
                raise ValueError(f"{self.folder / name} is damaged ({error}): {again}") from None
            for i, numbers in enumerate(part.items):
                if task.kind == "beats":
                    for number in numbers:
                        frames[number] = arrays[f"{i}.frames"]
                    continue
                for at, number in enumerate(numbers):
                    means[number] = arrays[f"{i}.mean"][at]
                    deviations[number] = arrays[f"{i}.deviation"][at]
        if task.kind == "beats":
            none = np.zeros((0, 0, 0), np.float32)
            frame_s = encoder.hop_samples * frames_joined(encoder) / encoder.rate_hz
            return Features(none, none, tuple(frames), frame_s)
        return Features(np.stack(means), np.stack(deviations))


def computed(encoder: Encoder, task: Task, part: Part, waves: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one part; `waves`: float32 of each of its files, at 24 kHz."""
    arrays = {}
    for i, (wave_N, numbers) in enumerate(zip(waves, part.items, strict=True)):
        if encoder.rate_hz != RATE_HZ:
            wave_N = soxr.resample(wave_N, RATE_HZ, encoder.rate_hz)
        if task.kind == "beats":
            arrays[f"{i}.frames"] = framed(encoder, wave_N)
            continue
        mean, deviation = pooled(encoder, wave_N, [task.items[number] for number in numbers])
        arrays |= {f"{i}.mean": mean, f"{i}.deviation": deviation}
    return arrays
