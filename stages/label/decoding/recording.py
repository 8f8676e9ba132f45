"""One recording from a file's bytes to int16 mono: libav decodes, the channels' mean, soxr resamples.

Runs in the child only, since libav may crash, hang or grow. Blocks of a few seconds bound the memory. libav's
own FIFO gathers the frames of a block, so that little Python runs per frame. Each link of a chained Ogg is
opened by itself: its clock, rate and channels are new.

Shapes: N samples, C channels.
"""

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator

import av
import numpy as np
from av.audio.fifo import AudioFifo

from stages.label.base import RejectRecording
from stages.label.decoding import ogg, tags
from stages.label.decoding.child import Send
from stages.label.decoding.opening import (
    MPEG,
    NO_AUDIO,
    RAW,
    File,
    header_s,
    open_audio,
    refuse_misread,
    whole,
)
from stages.label.decoding.quick import read_at
from stages.label.decoding.samples import downmix, float_planes, resampled, to_int16
from stages.label.decoding.tags import View, frame_bytes
from stages.label.statistics import stereo
from stages.signal.rates import HOP_SAMPLES

BLOCK_S = 5.0  # of the source
BLOCK_VALUES = 1 << 22  # samples x channels, where 5 s would be more
MAX_DAMAGED = 0.01  # share of the sound: less is a scratch, more is another piece of music
NEIGHBOURS = 32  # whole packets before a damaged stretch, whose sizes say how much sound it held
# Containers whose time stamps count samples: they jump where the demuxer silently dropped bytes, such as an
# Ogg page with a wrong checksum. Vorbis stamps waver by 10 ms between long and short windows.
STAMPED, WAVER_S = ("flac", "ogg"), 0.015
MAX_DEMUX_ERRORS = 16  # in a row, without a packet: no more will come


def answer(request: dict, send: Send) -> None:
    """Decode request["path"] and send it as messages of these kinds:

    H  JSON facts of the source       B  int16 mono samples at the requested rate
    E  JSON facts known at the end    C  JSON [begin s, end s, sums of products of a stretch's channels]
    R  reason of a rejection          O  JSON [errno, words]: its bytes could not be read
    """
    try:
        decode(request, send)
    except RejectRecording as rejected:
        send(b"R", str(rejected).encode("utf-8", "backslashreplace"))
    except OSError as error:
        send(b"O", json.dumps([error.errno, error.strerror or str(error)]).encode())


def decode(request: dict, send: Send) -> None:
    """Raises `RejectRecording`, `OSError` (of its bytes), `MemoryError`."""
    file, samples = File(os.fsencode(request["path"])), 0
    try:
        with contextlib.closing(Decoding(file, request["max_s"])) as decoding:
            blocks = decoding.blocks(lambda facts: send(b"H", json.dumps(facts).encode()))
            for block in resampled(blocks, request["rate_hz"], request["resampler"]):
                samples += len(block)
                while decoding.channels:
                    send(b"C", json.dumps(decoding.channels.pop(0)).encode())
                send(b"B", to_int16(block).data)
        if samples == 0:
            raise RejectRecording("0 samples decoded")
        if samples < HOP_SAMPLES:
            count = "1 sample" if samples == 1 else f"{samples} samples"
            raise RejectRecording(f"{count} at 24 kHz: shorter than one label frame ({HOP_SAMPLES})")
    finally:
        file.close()
        if file.error is not None:  # whatever libav made of it
            raise file.error
    end = {"decoded_s": round(decoding.decoded_s, 6), "damaged_packets": decoding.damaged}
    send(b"E", json.dumps(end | {"changes": decoding.changes}).encode())


class Decoding:
    """One recording being decoded: `blocks()` yields float32 mono (N,) at the source's rate, with that rate.

    channels: begin s, end s, sums of products of each stretch, removed by the caller."""

    def __init__(self, file: File, max_s: float):
        self.max_s, self._file = max_s, file
        self.decoded_s, self.packets, self.damaged, self.changes = 0.0, 0, 0, 0
        self.words, self._last_bad, self._sizes = "", 0, deque(maxlen=NEIGHBOURS)
        self._lost_s, self._zero_s = 0.0, None
        self.channels: list[tuple[float, ...]] = []
        self._logged = av.logging.get_last_error()[0]
        self._container, view = None, whole(file, file.size)
        start = file.size - view.size
        is_ogg = read_at(file, start, len(tags.OGG)) == tags.OGG
        links = ogg.links(file, start, file.size) if is_ogg else [(start, file.size)]
        self._links = deque(View(file, [link]) for link in links)
        try:
            self._open(self._links[0])
            # of one link of many libav knows only the length of that one
            self._header_s = header_s(self._container, self._stream, view) if len(links) == 1 else None
            self._raw = self._container.format.name in RAW
            mpeg = self._container.format.name in MPEG
            sound = View(file, tags.sound(file, start, file.size, mpeg)) if self._raw else view
            if sound.size < view.size:
                self._open(sound)
            refuse_misread(self._container, self._stream, view)
        except av.FFmpegError as error:
            raise RejectRecording(f"{NO_AUDIO}: {self._message(error)}") from error
        except ValueError as error:
            raise RejectRecording(str(error)) from error

    def _open(self, view: View) -> None:
        if self._container is not None:
            self._container.close()
        self._container, self._stream, self.other_tracks = open_audio(view)
        context = self._stream.codec_context
        context.thread_count = 1  # a worker has one core
        if context.name == "flac":  # else a flipped bit becomes noise without an error
            context.options = {"err_detect": "crccheck+explode"}

    def close(self) -> None:
        self._container.close()

    def facts(self, frame: av.AudioFrame) -> dict:
        return {
            "source_rate_hz": frame.sample_rate,
            "source_channels": frame.layout.nb_channels,
            "source_codec": self._stream.codec_context.codec.canonical_name,
            "source_container": self._container.format.name,
            "source_format": frame.format.name,
            "header_s": self._header_s,
            "other_tracks": self.other_tracks,
        }

    def blocks(self, head: Callable[[dict], None]) -> Iterator[tuple[np.ndarray, int]]:
        kind = None
        while self._links:
            self._zero_s, lost_s = None, self._lost_s
            kind = yield from self._link(kind, head)
            self._look_at_the_pages(self._links.popleft(), lost_s)
            self._open_next()
        self._judge()

    def _open_next(self) -> None:
        """The first of the links left; one that cannot be opened is lost."""
        while self._links:
            try:
                return self._open(self._links[0])
            except (av.FFmpegError, ValueError) as error:
                self._bad(error, self._links.popleft().size)
                self._last_bad = 0  # it is no cut, wherever it is

    def _link(self, kind: tuple | None, head: Callable[[dict], None]) -> Iterator[tuple[np.ndarray, int]]:
        """Blocks of the open container; returns the kind of its last frame. `kind`: of the one before."""
        fifo, held = AudioFifo(), 0
        for frame in self._frames():
            seen = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
            if seen != kind:  # joined files may change them
                if kind is None:
                    head(self.facts(frame))
                else:
                    self.changes += 1
                    if held:
                        yield self._block(fifo, kind)
                kind, fifo, held, self._zero_s = seen, AudioFifo(), 0, None
            rate_hz, channels, _ = kind
            if not rate_hz or not channels:
                raise RejectRecording(f"{rate_hz} Hz, {channels} channels")
            pts, frame.pts = frame.pts, None  # gaps are not filled: what is decoded counts
            if held == 0 and pts is not None:
                self._look_for_a_gap(float(pts * frame.time_base), self.decoded_s)
            fifo.write(frame)
            held += frame.samples
            if held >= min(int(BLOCK_S * rate_hz), BLOCK_VALUES // channels):
                yield self._block(fifo, kind)
                held = 0
        if held:
            if pts is not None:  # a gap within the last block, or within a recording of one block
                before_s = self.decoded_s + (held - frame.samples) / rate_hz
                self._look_for_a_gap(float(pts * frame.time_base), before_s)
            yield self._block(fifo, kind)
        return kind

    def _look_for_a_gap(self, stamp_s: float, decoded_s: float) -> None:
        drift_s = stamp_s - decoded_s - self._lost_s
        if self._zero_s is None or drift_s < self._zero_s - 1:  # the first, or the next of a chained file
            self._zero_s = drift_s
        elif drift_s > self._zero_s + WAVER_S and self._container.format.name in STAMPED:
            self._lost_s += drift_s - self._zero_s

    def _look_at_the_pages(self, link: View, lost_s: float) -> None:
        """In an Ogg the pages tell better than the stamps what is missing."""
        if self._container.format.name != "ogg":
            return
        context = self._stream.codec_context
        rate_hz = 48_000 if context.name == "opus" else context.sample_rate
        suspicious = self._lost_s > lost_s or av.logging.get_last_error()[0] > self._logged
        lost = ogg.lost_samples(self._file, link.ranges[0], suspicious)
        if lost is not None and rate_hz:
            self._lost_s = lost_s + lost / rate_hz

    def _block(self, fifo: AudioFifo, kind: tuple[int, int, str]) -> tuple[np.ndarray, int]:
        rate_hz, channels, name = kind
        begin_s = self.decoded_s
        self.decoded_s += fifo.samples / rate_hz
        if self.decoded_s > self.max_s:
            raise RejectRecording(f"longer than {self.max_s / 3600:g} h")
        with np.errstate(over="ignore", invalid="ignore"):  # `downmix` rejects it
            planes = float_planes(fifo.read().to_ndarray(), channels, name)
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
            if frames:
                self._last_bad = 0
            if packet is not None and packet.size:
                self.packets += 1
                self._sizes.append(packet.size - self._strangers(packet))
            yield from frames

    def _strangers(self, packet: av.Packet) -> int:
        """Bytes of a packet before or behind its frame, which a decoder skips: they count as packets."""
        if not self._raw:
            return 0
        data = bytes(packet)
        frame = data.lstrip(b"\0")
        if not (size := frame_bytes(frame[:6])) or len(data) <= size:
            return 0
        many = round((len(data) - size) / (sum(self._sizes) / len(self._sizes) if self._sizes else size))
        self.packets += many
        self.damaged += many
        if len(frame) == len(data):  # behind the frame: no damage where nothing comes after
            self._last_bad = many
        return len(data) - size

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
                message = f"changes midway as no decoder can follow: {self._message(error)}"
                raise RejectRecording(message) from error
            except av.FFmpegError as error:
                errors += 1
                if errors == 1:  # more in a row are the same gap
                    self._bad(error)
        yield None  # libav's flush packet, lost by an error

    def _bad(self, error: Exception, size: int = 0) -> None:
        """A parser returns all it skipped as one packet: it counts as so many as its whole neighbours."""
        many = max(1, round(size * len(self._sizes) / sum(self._sizes))) if self._sizes else 1
        self.packets += many
        self.damaged += many
        self.words, self._last_bad = self._message(error), many

    def _judge(self) -> None:
        if not self.decoded_s and self.words:
            raise RejectRecording(f"nothing decodable: {self.words}")
        good = self.packets - self.damaged
        counted = self.damaged - self._last_bad  # the cut of a truncated file is no damage
        if self.decoded_s:  # a dropped packet may have been counted as a bad one
            counted = max(counted, round(self._lost_s * good / self.decoded_s))
        self.damaged = counted + self._last_bad
        self.packets = good + self.damaged
        if counted > MAX_DAMAGED * self.packets:
            whole_s = self.decoded_s * self.packets / max(1, good)
            words = self.words or f"{self._lost_s:.1f} s missing"
            raise RejectRecording(
                f"{whole_s - self.decoded_s:.1f} of {whole_s:.1f} s of its sound are damaged or missing "
                f"({self.damaged} of {self.packets} packets damaged: {words})"
            )

    def _message(self, error: Exception) -> str:
        """The decoder's own words, with its last log line if that is about this recording."""
        count, log = av.logging.get_last_error()
        words = getattr(error, "strerror", None) or str(error)
        return f"{words} ({log[1]}: {log[2].strip()})" if log and count > self._logged else words
