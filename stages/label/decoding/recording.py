"""One recording from a file's bytes to int16 mono: libav decodes, the channels' mean, soxr resamples.

Runs in the child only, for libav may crash, hang or grow. Everything streams in blocks of a few
seconds, so memory is bounded by the block. Per frame there is as little Python as can be: frames
are gathered by libav's own FIFO and become an array once a block.

Shapes: N samples, C channels.
"""

import errno
from collections.abc import Callable, Iterator

import av
import numpy as np
import soxr
from av.audio.fifo import AudioFifo

from stages.label.base import RejectRecording
from stages.label.statistics import stereo

BLOCK_S = 5.0  # of the source
BLOCK_VALUES = 1 << 22  # samples x channels, where 5 s would be more than that
MAX_DAMAGED = 0.01  # share of packets: fewer are scratches, more is another piece of music
# Containers whose time stamps count samples: a jump is bytes that the demuxer dropped without a word,
# such as an Ogg page with a wrong checksum. Vorbis stamps waver by 10 ms between long and short windows.
STAMPED, WAVER_S = ("flac", "ogg"), 0.015
MAX_DEMUX_ERRORS = 16  # in a row, without a packet between: the container leads nowhere
SCALE = {"u8": 1 / 128, "s16": 1 / 32768, "s32": 1 / 2**31, "s64": 1 / 2**63, "flt": 1.0, "dbl": 1.0}


class File:
    """A file for libav that remembers a read error: libav may take one for the recording's end."""

    def __init__(self, path: bytes):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 the caller closes it
        self.error: OSError | None = None
        self.close, self.tell = self._file.close, self._file.tell

    def read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            if error.errno != errno.EINVAL:
                self.error = error
                raise
            return -errno.EINVAL  # before the beginning: probing a short file, not a read error


class Decoding:
    """One recording on its way: `blocks()` gives float32 mono (N,) at the source's rate, with that rate."""

    def __init__(self, file: File, max_s: float):
        self.max_s = max_s
        self.decoded_s, self.packets, self.damaged, self.changes = 0.0, 0, 0, 0
        self.words, self._last_bad, self._good_bytes = "", 0, 0
        self._lost_s, self._zero_s = 0.0, None
        # begin s, end s, sums of products; for the caller to take away
        self.channels: list[tuple[float, ...]] = []
        self._logged = av.logging.get_last_error()[0]
        try:
            self._container = av.open(
                file,
                metadata_errors="replace",
                buffer_size=1 << 18,
                options={"protocol_whitelist": "fd"},  # a playlist may not open other files
            )
        except av.FFmpegError as error:
            raise RejectRecording(self._said(error)) from error
        if not self._container.streams.audio:
            raise RejectRecording(f"no audio stream in this {self._container.format.name}")
        self._stream = self._container.streams.audio[0]
        context = self._stream.codec_context
        if context is None:
            raise RejectRecording("no decoder for its audio stream")
        context.thread_count = 1  # a worker is one core; threads only change the accounting
        if context.name == "flac":  # else a flipped bit is a burst of noise that nobody reports
            context.options = {"err_detect": "crccheck+explode"}

    def close(self) -> None:
        self._container.close()

    def facts(self, frame: av.AudioFrame) -> dict:
        container, stream = self._container, self._stream
        header_s = container.duration / av.time_base if container.duration else None
        if stream.duration:
            header_s = float(stream.duration * stream.time_base)
        return {
            "source_rate_hz": frame.sample_rate,
            "source_channels": frame.layout.nb_channels,
            "source_codec": stream.codec_context.codec.canonical_name,
            "source_container": container.format.name,
            "source_format": frame.format.name,
            "header_s": header_s,
        }

    def blocks(self, head: Callable[[dict], None]) -> Iterator[tuple[np.ndarray, int]]:
        kind, fifo, held = None, None, 0
        for frame in self._frames():
            seen = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
            if seen != kind:  # a chained file may change them: what is held belongs to the old
                if kind is None:
                    head(self.facts(frame))
                else:
                    self.changes += 1
                    if held:
                        yield self._block(fifo, held, kind)
                kind, fifo, held = seen, AudioFifo(), 0
                self._zero_s = None
                if not seen[0] or not seen[1]:
                    raise RejectRecording(f"{seen[0]} Hz, {seen[1]} channels")
                enough = min(int(BLOCK_S * seen[0]), BLOCK_VALUES // seen[1])
            pts, frame.pts = frame.pts, None  # gaps are not filled: what is decoded counts
            if held == 0 and pts is not None:
                self._look_for_a_gap(float(pts * frame.time_base), self.decoded_s)
            fifo.write(frame)
            held += frame.samples
            if held >= enough:
                yield self._block(fifo, held, kind)
                held = 0
        if held:
            if pts is not None:  # what is missing from the last block, or from a recording of one block
                self._look_for_a_gap(
                    float(pts * frame.time_base), self.decoded_s + (held - frame.samples) / kind[0]
                )
            yield self._block(fifo, held, kind)
        self._judge()

    def _look_for_a_gap(self, stamp_s: float, decoded_s: float) -> None:
        drift_s = stamp_s - decoded_s - self._lost_s
        if self._zero_s is None or drift_s < self._zero_s - 1:  # the first, or a chained file begins anew
            self._zero_s = drift_s
        elif drift_s > self._zero_s + WAVER_S and self._container.format.name in STAMPED:
            self._lost_s += drift_s - self._zero_s

    def _block(self, fifo: AudioFifo, held: int, kind: tuple[int, int, str]) -> tuple[np.ndarray, int]:
        rate_hz, channels, name = kind
        begin_s = self.decoded_s
        self.decoded_s += held / rate_hz
        if self.decoded_s > self.max_s:
            raise RejectRecording(f"longer than {self.max_s / 3600:g} h")
        planes = float_planes(fifo.read(held).to_ndarray(), channels, name)
        if channels > 1:
            self.channels.append((begin_s, self.decoded_s, *stereo.products(planes)))
        return downmix(planes, channels, name), rate_hz

    def _frames(self) -> Iterator[av.AudioFrame]:
        for packet in self._demux():
            try:
                frames = packet.decode() if packet is not None else self._stream.decode(None)
            except MemoryError:
                raise
            except av.FFmpegError as error:
                self._bad(error, packet.size if packet is not None else 0)
                continue
            if packet is not None and packet.size:
                self.packets += 1
                self._good_bytes += packet.size
            if frames:
                self._last_bad = 0
            yield from frames

    def _demux(self) -> Iterator[av.Packet | None]:
        errors = 0
        while errors < MAX_DEMUX_ERRORS:
            try:
                for packet in self._container.demux(self._stream):
                    errors = 0
                    yield packet
                return
            except MemoryError:
                raise
            except av.error.PatchWelcomeError as error:  # such as another rate in a chained Ogg
                raise RejectRecording(
                    f"changes midway as no decoder can follow: {self._said(error)}"
                ) from error
            except av.FFmpegError as error:
                errors += 1
                if errors == 1:  # more in a row are one and the same hole
                    self._bad(error)
        yield None  # libav's flush packet, which an error has cost us

    def _bad(self, error: av.FFmpegError, size: int = 0) -> None:
        """A parser that finds no frame hands over all it passed by as one packet: count it as so many."""
        good = self.packets - self.damaged
        many = max(1, round(size * good / self._good_bytes)) if self._good_bytes else 1
        self.packets += many
        self.damaged += many
        self.words, self._last_bad = self._said(error), many

    def _judge(self) -> None:
        if not self.decoded_s and self.words:
            raise RejectRecording(f"nothing decodable: {self.words}")
        good = self.packets - self.damaged
        counted = self.damaged - self._last_bad  # where a truncated file was cut is no damage
        if self.decoded_s:  # a dropped packet may have been counted already, as a bad one
            counted = max(counted, round(self._lost_s * good / self.decoded_s))
        self.damaged = counted + self._last_bad
        self.packets = good + self.damaged
        if counted > MAX_DAMAGED * self.packets:
            words = self.words or f"{self._lost_s:.1f} s missing between time stamps"
            raise RejectRecording(f"{self.damaged} of {self.packets} packets damaged: {words}")

    def _said(self, error: av.FFmpegError) -> str:
        """The decoder's own words; its last log line only if it is about this recording."""
        count, log = av.logging.get_last_error()
        said = error.strerror or str(error)
        return f"{said} ({log[1]}: {log[2].strip()})" if log and count > self._logged else said


def float_planes(values: np.ndarray, channels: int, name: str) -> np.ndarray:
    """float32 (C, N) in the format's own scale, of what PyAV gives: (C, N) planar or (1, N * C) packed.

    Raises `RejectRecording` for an unknown sample format `name`."""
    if SCALE.get(name.removesuffix("p")) is None:
        raise RejectRecording(f"unknown sample format {name}")
    planes = values if name.endswith("p") else values.reshape(-1, channels).T
    with np.errstate(over="ignore", invalid="ignore"):  # `downmix` sees and names it
        planes = np.ascontiguousarray(planes, np.float32)
    return planes - np.float32(128) if name.startswith("u8") else planes


def downmix(planes: np.ndarray, channels: int, name: str) -> np.ndarray:
    """The mean of the channels, full scale +-1: float32 (N,) of the planes (C, N) of the sample format
    `name`.

    Raises `RejectRecording` for samples that are no numbers."""
    scale = SCALE[name.removesuffix("p")]
    with np.errstate(over="ignore", invalid="ignore"):  # seen and named below
        mono = planes[0] if channels == 1 else planes[0] + planes[1]
        for plane in planes[2:]:
            mono += plane
        mono = mono * np.float32(scale / channels)
        if name[:3] in ("flt", "dbl") and not (np.isfinite(mono.min()) and np.isfinite(mono.max())):
            raise RejectRecording("NaN or infinite samples")
    return mono


def resampled(blocks: Iterator[tuple[np.ndarray, int]], rate_hz: int, quality: str) -> Iterator[np.ndarray]:
    """float32 (N,) at `rate_hz`. Another source rate in mid-stream starts another resampler."""
    stream, current = None, None
    nothing = np.zeros(0, np.float32)
    for block, source_hz in blocks:
        if source_hz != current:
            if stream is not None:
                yield stream.resample_chunk(nothing, last=True)
            current = source_hz
            stream = None
            if source_hz != rate_hz:
                stream = soxr.ResampleStream(source_hz, rate_hz, 1, dtype="float32", quality=quality)
        yield block if stream is None else stream.resample_chunk(block)
    if stream is not None:
        yield stream.resample_chunk(nothing, last=True)


def to_int16(block: np.ndarray) -> np.ndarray:
    """int16 = clip(round(x * 32768)); stored / 32768 is what every later stage hears."""
    scaled = block * np.float32(32768)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)
