"""A labelled OUT made in milliseconds: real shards of real format, filled with numbers of a seeded generator.

Letters: N samples, T frames, K codebooks, F bins.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import yaml

from stages.label import gathering
from stages.label.decode import wav_bytes
from stages.label.statistics.wave import levels
from stages.shards import catalog, column
from stages.shards.catalog import PLAN
from stages.shards.frames import encode_uint8
from stages.shards.record import Record, recipe8
from stages.shards.storage import Storage

K, SIZE, F = 3, 50, 12
SEGMENT = 64_000  # samples; a recording's last segment may be longer or shorter
CROP = 16_000


def write_plan(storage: Storage, plan: list[dict]) -> None:
    """plan.parquet of rows with recording, shard and split; the other columns hold something."""
    filler = dict(attempt=0, path="x", path_bytes=b"x", size=1, mtime_ns=1, quick="q", duration_s=1.0)
    empty = {field.name: None for field in PLAN} | filler
    rows = [empty | {"order": i} | row for i, row in enumerate(plan)]
    storage.write_table("plan.parquet", pa.Table.from_pylist(rows, schema=PLAN))


@dataclass
class Corpus:
    """What was written: whole recordings, so that a test can cut its own crops."""

    root: str
    format: str = "wav"
    storage: str = "float16"
    seed: int = 0
    teacher: str = "a"  # another one adds a codes column to the same audio
    waves: dict[str, np.ndarray] = field(default_factory=dict)  # recording → int16 (N,)
    codes: dict[str, np.ndarray] = field(default_factory=dict)  # uint16 (T, K)
    cqt: dict[str, np.ndarray] = field(default_factory=dict)  # float32 (T, F) as stored
    keys: dict[str, list[str]] = field(default_factory=dict)  # shard → keys

    @property
    def recipes(self) -> dict[str, dict]:
        audio = {"stage": "decode", "format": self.format}
        return {
            "audio": audio,
            "codes": {
                "stage": "codes",
                "teacher": {"teacher": self.teacher, "codebooks": K, "codebook_size": SIZE},
            },
            "cqt": {
                "stage": "cqt",
                "bins": F,
                "fmin_hz": 32.7,
                "bins_per_octave": 48,
                "storage": self.storage,
            },
        }

    @property
    def names(self) -> dict[str, str]:
        return {"audio": "audio"} | {k: f"{k}-{recipe8(self.recipes[k])}" for k in ("codes", "cqt")}

    def write(
        self,
        shards: int = 4,
        recordings: int = 2,
        segments: int = 3,
        valid: int = 1,
        rejects: tuple[str, ...] = (),
        short_of: str | None = None,
    ) -> "Corpus":
        """`rejects`: recordings the codes stage refused. `short_of`: shard whose codes lack their last key
        without saying why."""
        rng, storage, plan = np.random.default_rng(self.seed), Storage(self.root), []
        for s in range(shards):
            shard = f"s{self.seed:02d}{s:04d}"
            own = [f"{self.seed:04x}{s:06x}{r:06x}" for r in range(recordings)]
            for recording in own:
                extra = int(rng.integers(0, 900)) - 400  # no multiple of a frame
                self._recording(rng, recording, segments * SEGMENT + extra)
            parts = [(r, i) for r in own for i in range(segments)]
            self.keys[shard] = [f"{r}-{i:05d}" for r, i in parts]
            sha = self._column(storage, "audio", shard, parts, None, ())
            self._column(storage, "codes", shard, parts, sha, rejects, shard == short_of)
            self._column(storage, "cqt", shard, parts, sha, ())
            plan += [
                {"recording": r, "shard": shard, "split": "valid" if s * recordings + i < valid else "train"}
                for i, r in enumerate(own)
            ]
        write_plan(storage, plan)
        before = (
            yaml.safe_load(storage.read("recipe.yaml"))["columns"] if storage.exists("recipe.yaml") else {}
        )
        known = before | {self.names[k]: recipe for k, recipe in self.recipes.items()}
        storage.write(
            "recipe.yaml", yaml.safe_dump({"plan": {}, "columns": known, "current": self.names}).encode()
        )
        return self

    def gather(self) -> "Corpus":
        """OUT/index.parquet, segments.parquet and shards.parquet, as labelling gathers them."""
        storage = Storage(self.root)
        live = catalog.live(storage.read_table("plan.parquet"))["recording"].combine_chunks()
        gathering.gather(storage, tuple(self.names.values()), sorted(self.keys), live)
        gathering.compact(storage, live)
        return self

    def tombstone(self, recording: str) -> None:
        storage = Storage(self.root)
        rows = storage.read_table("plan.parquet").to_pylist()
        rows = [row | ({"tombstone": "edited"} if row["recording"] == recording else {}) for row in rows]
        storage.write_table("plan.parquet", pa.Table.from_pylist(rows, schema=PLAN))

    def tar(self, kind: str, shard: str) -> Path:
        return Path(self.root) / "columns" / self.names[kind] / f"{shard}.tar"

    def _recording(self, rng: np.random.Generator, recording: str, samples: int) -> None:
        frames = samples // 320
        self.waves[recording] = rng.integers(-20_000, 20_000, samples).astype(np.int16)
        self.codes[recording] = rng.integers(0, SIZE, (frames, K)).astype(np.uint16)
        if self.teacher != "a":
            self.codes[recording] = SIZE - 1 - self.codes[recording]
        self.cqt[recording] = rng.gamma(1.0, 3.0, (frames, F)).astype(np.float32)

    def _column(
        self,
        storage: Storage,
        kind: str,
        shard: str,
        parts: list,
        sha: str | None,
        rejects: tuple[str, ...],
        short: bool = False,
    ) -> str:
        kept = [(r, i) for r, i in parts if r not in rejects][: -1 if short else None]
        scale = 40.0 / 255
        with column.publishing(storage, self.names[kind], shard) as publication:
            for recording, i in kept:
                start = i * SEGMENT
                last = not any(r == recording and j == i + 1 for r, j in parts)
                stop = len(self.waves[recording]) if last else start + SEGMENT
                frames = slice(start // 320, start // 320 + (stop - start) // 320)
                members, stats = self._members(kind, recording, slice(start, stop), frames, scale)
                row = {
                    "recording": recording,
                    "start": start,
                    "samples": stop - start,
                    "frames": (stop - start) // 320,
                }
                publication.writer.add(f"{recording}-{i:05d}", members, row, stats)
                publication.writer.keep({})
            refused = sorted({r for r, _ in parts if r in rejects})
            facts = {
                "codes": {"codebooks": K, "codebook_size": SIZE, "hop_samples": 320},
                "cqt": {"bins": F, "magnitude": "linear", "uint8": {"scale": scale, "offset": 0.0}},
            }.get(kind, {})
            publication.record = Record(
                shard=shard,
                column=self.names[kind],
                recipe=self.recipes[kind],
                inputs=len({r for r, _ in parts}),
                kept=len({r for r, _ in kept}),
                rejects=[{"recording": r, "path": "x", "reason": "no"} for r in refused],
                source_sha256=sha,
                software={},
                device="cpu",
                facts=facts,
                **publication.writer.finish(),
            )
        return publication.record.sha256

    def _members(
        self, kind: str, recording: str, samples: slice, frames: slice, scale: float
    ) -> tuple[dict, dict]:
        if kind == "codes":
            return {"codes.npy": column.npy_bytes(self.codes[recording][frames])}, {}
        if kind == "cqt":
            exact = self.cqt[recording][frames]
            stored = (
                exact.astype(np.float16) if self.storage == "float16" else encode_uint8(exact, 0.0, scale)
            )
            # What is stored is what a loader must give back.
            self.cqt[recording][frames] = stored.astype(np.float32) * (
                1 if self.storage == "float16" else np.float32(scale)
            )
            return {"cqt.npy": column.npy_bytes(stored)}, {}
        wave = self.waves[recording][samples]
        if self.format == "wav":
            return {"wav": wav_bytes(wave)}, levels(wave)
        out = io.BytesIO()
        soundfile.write(out, wave, 24_000, format="FLAC", subtype="PCM_16")
        return {"flac": out.getvalue()}, levels(wave)
