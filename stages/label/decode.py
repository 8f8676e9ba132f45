"""The decode stage: any audio file to 24 kHz mono, cut into segments. Column `audio`.

A child process decodes (`decoding/`), so that a bad file costs one file."""

import contextlib
import io
import json
import os
import wave
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Annotated, Literal

import numpy as np
import soundfile

from stages.config import NotNegative, Positive, check, remedy, settings
from stages.label.base import Item, Kept, ReadError, Rejected, RejectRecording, Sample
from stages.label.decoding.process import DecoderProcess
from stages.label.decoding.source import Source
from stages.label.statistics.stereo import Stereo
from stages.label.statistics.wave import of_wave
from stages.shards.fetching import Fetch
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

SLOWEST = 5  # recordings of a shard whose decoding times are recorded


@settings
class Decode:
    """Recordings to 16-bit segments."""

    name = "decode"
    version = 1
    writes = "audio"
    cpu_s = 0.003

    # the stored rate
    rate_hz: Annotated[Literal[RATE_HZ], remedy("every label is defined at it")] = RATE_HZ
    # a multiple of one label frame, 320 samples; whole multiples of 0.04 s are
    segment_s: Positive = 30.0
    min_tail_s: NotNegative = 3.0  # a shorter tail joins the segment before it
    format: Literal["wav", "flac"] = "wav"  # of stored segments, 16 bits
    resampler: Literal["QQ", "LQ", "MQ", "HQ", "VHQ"] = "HQ"  # soxr's names; HQ: aliases below -120 dB
    max_recording_h: Positive = 12.0  # a decompression bomb stops here

    def __post_init__(self):
        frame = f"{HOP_SAMPLES}/{RATE_HZ} s"
        multiple = f"expected a multiple of one label frame, {frame}; whole multiples of 0.04 s are"
        check(self.segment_s * RATE_HZ % HOP_SAMPLES == 0, self, "segment_s", multiple)
        most = f"expected 0 to segment_s ({self.segment_s})"
        check(self.min_tail_s <= self.segment_s, self, "min_tail_s", most)

    @property
    def segment_samples(self) -> int:
        return round(self.segment_s * RATE_HZ)

    @property
    def tail_samples(self) -> int:
        """Of the shortest last segment: at least one label frame."""
        return max(HOP_SAMPLES, round(self.min_tail_s * RATE_HZ))

    def open(
        self,
        weights: bytes | None = None,
        device: str = "cpu",
        threads: int = 1,
        *,
        stall_s: float = 60.0,
        memory_gb: float = 4.0,
        fetch: Fetch | None = None,
    ) -> "Decoder":
        """`weights`, `device` and `threads` have no effect: one core decodes.

        stall_s: longest wait for audio. memory_gb: of the child process. fetch: copies an s3:// source."""
        return Decoder(self, DecoderProcess(stall_s, memory_gb), fetch)


class Decoder:
    """`ReadError`, which fails the shard: bytes that cannot be read, or are not those that were scanned. The
    decoder stays usable."""

    def __init__(self, stage: Decode, decoder: DecoderProcess, fetch: Fetch | None):
        self._stage, self._process, self._fetch = stage, decoder, fetch
        self._times: list[tuple[str, float, float]] = []  # recording, seconds, seconds of audio from it

    def __call__(self, recordings: Iterable[Source]) -> Iterator[Item]:
        self._times = []
        for source in recordings:
            self._process.ready()  # its start counts for no recording
            seconds, samples = 0.0, 0
            with contextlib.closing(self._outcome(source)) as items:
                while True:
                    since = monotonic()
                    item = next(items, None)
                    seconds += monotonic() - since  # without the time in which the items are written
                    if item is None:
                        break
                    samples += item.row["samples"] if isinstance(item, Sample) else 0
                    yield item
            self._times.append((source.recording, seconds, samples / RATE_HZ))

    def run_facts(self) -> dict:
        """slowest: the last shard's recordings, rejected ones too, that took most seconds beyond what their
        audio takes at the shard's mean speed."""
        pace = sum(timed[1] for timed in self._times) / (sum(timed[2] for timed in self._times) or 1.0)
        slowest = sorted(self._times, key=lambda timed: (pace * timed[2] - timed[1], timed[0]))[:SLOWEST]
        found = []
        for name, s, audio_s in slowest:
            speed = round(audio_s / s, 3) if s else None
            found.append({"recording": name, "seconds": round(s, 4), "times_real_time": speed})
        return {"slowest": found}

    def close(self) -> None:
        self._process.close()

    def _outcome(self, source: Source) -> Iterator[Item]:
        stage, facts, stereo, start = self._stage, {}, Stereo(), 0
        request = {"rate_hz": stage.rate_hz, "resampler": stage.resampler}
        request["max_s"] = stage.max_recording_h * 3600
        try:
            with self._local(source) as path:
                blocks = self._process.decode(source, path, request, facts, stereo.add)
                with contextlib.closing(blocks):  # left early, the child must not continue
                    segments = cut_segments(blocks, stage.segment_samples, stage.tail_samples)
                    for index, segment in enumerate(segments):
                        correlation = stereo.correlation(start / RATE_HZ, (start + len(segment)) / RATE_HZ)
                        yield self._sample(source.recording, index, start, segment, facts, correlation)
                        start += len(segment)
            yield Kept(source.recording, {**facts, "samples": start, "segments": index + 1})
        except RejectRecording as refused:
            yield Rejected(source.recording, str(refused))

    @contextlib.contextmanager
    def _local(self, source: Source) -> Iterator[bytes]:
        if not source.remote:
            yield source.path_bytes
            return
        if self._fetch is None:
            raise ReadError(f"{source.shown}: no way to fetch it; open the stage with fetch=")
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(self._fetch(source.path_bytes.decode()))
            except OSError as error:
                raise ReadError(f"{source.shown}: cannot be fetched ({error})") from error
            yield os.fsencode(path)

    def _sample(
        self, recording: str, index: int, start: int, segment: np.ndarray, facts: dict, stereo: float | None
    ) -> Sample:
        place = {"recording": recording, "start": start, "samples": len(segment)}
        source = {name: facts[name] for name in ("source_rate_hz", "source_channels", "source_codec")}
        text = json.dumps(place | source | {"rate_hz": RATE_HZ}, sort_keys=True, separators=(",", ":"))
        encode = wav_bytes if self._stage.format == "wav" else flac_bytes
        members = {"json": text.encode(), self._stage.format: encode(segment)}
        row = {"recording": recording, "index": index} | place | {"frames": len(segment) // HOP_SAMPLES}
        return Sample(f"{recording}-{index:05d}", members, row, of_wave(segment) | {"stereo": stereo})


def cut_segments(blocks: Iterable[np.ndarray], segment: int, tail: int) -> Iterator[np.ndarray]:
    """Blocks (N,) of any length to segments of `segment` samples.

    Only the last may differ: it has at least `tail` samples (0 < tail <= segment), for a shorter tail joins
    the segment before it, or is the only one."""
    held, samples = [], 0
    for block in blocks:
        held.append(block)
        samples += len(block)
        while samples >= segment + tail:
            joined = np.concatenate(held)
            yield joined[:segment]
            held = [joined[segment:]]
            samples -= segment
    if samples:
        yield np.concatenate(held)


def wav_bytes(segment: np.ndarray) -> bytes:
    """int16 (N,) to a RIFF file: a 44-byte header, so that sample i is at byte 44 + 2 i."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, RATE_HZ, len(segment), "NONE", ""))
        file.writeframes(np.ascontiguousarray(segment, "<i2").tobytes())
    return out.getvalue()


def flac_bytes(segment: np.ndarray) -> bytes:
    """int16 (N,); the same samples give the same bytes with the same libsndfile."""
    out = io.BytesIO()
    soundfile.write(out, segment, RATE_HZ, format="FLAC", subtype="PCM_16")
    return out.getvalue()
