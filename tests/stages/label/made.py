"""Shards made in milliseconds: an audio column without a decoder, and a teacher without a model."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.label.base import RejectRecording
from stages.label.codes import Codes
from stages.label.decode import wav_bytes
from stages.label.shard import Job
from stages.shards import column
from stages.shards import record as records
from stages.shards.storage import Storage

SEGMENT = 3200  # samples
SHARD = "s1"


def audio(
    storage: Storage,
    recordings: Iterable[str] = ("a", "b", "c"),
    seed: int = 0,
    segments: int = 2,
    shard: str = SHARD,
    stats: dict | None = None,
    run: dict | None = None,
    live: int | None = None,
) -> records.Record:
    """Publish an audio column of noise. Of the recordings, those after the first `live` are rejected after
    their first segment."""
    rng, recordings = np.random.default_rng(seed), list(recordings)
    live = len(recordings) if live is None else live
    with column.publishing(storage, "audio", shard) as publication:
        for number, recording in enumerate(recordings):
            for index in range(segments if number < live else 1):
                identity = {"recording": recording, "start": index * SEGMENT, "samples": SEGMENT}
                wave = rng.integers(-20_000, 20_000, SEGMENT).astype(np.int16)
                members = {"json": json.dumps(identity).encode(), "wav": wav_bytes(wave)}
                publication.writer.add(
                    f"{recording}-{index:05d}",
                    members,
                    identity | {"frames": SEGMENT // 320},
                    stats or {"loud": 1.0},
                )
            if number < live:
                publication.writer.keep({})
            else:
                publication.writer.take_back()
        rejects = [{"recording": r, "path": f"{r}.wav", "reason": "odd"} for r in recordings[live:]]
        publication.record = records.Record(
            shard=shard,
            column="audio",
            recipe={},
            inputs=len(recordings),
            kept=live,
            rejects=rejects,
            source_sha256=None,
            software={},
            device="cpu",
            run=run or {},
            **publication.writer.finish(),
        )
    return publication.record


@dataclass(frozen=True)
class Ear:
    """A toy teacher: the code of a frame is its first sample. It refuses the recordings it is told to, after
    their first segment."""

    name = "ear"
    version = 1
    codebooks = 1
    codebook_size = 65_536
    refuses: tuple[str, ...] = ()
    fails: type[Exception] | None = None
    errno: int | None = None

    def open(self, weights, device, threads):
        def label(wave):
            if self.fails:
                raise self.fails(self.errno, "asked for") if self.errno else self.fails("asked for")
            for start in range(0, wave.samples, SEGMENT):
                if start and wave.recording in self.refuses:
                    raise RejectRecording("too loud")
                yield (32_768 * (1 + wave.read(start, start + SEGMENT)[::320, None])).astype(np.uint16)

        return label


# noqa: B008 - frozen
def codes_job(out: Path | str, ear: Ear = Ear(), name: str = "codes-ear", **options) -> Job:
    return Job(Codes(ear), name, "audio", {"stage": "codes"}, str(out), **options)
