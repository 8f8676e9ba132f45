"""At least 120 files as people have them, by kind, each with what must become of it."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.wild import pieces
from tests.wild.pieces import RATE_HZ, ape, id3v1, id3v2, libav, lyrics3, picture, repaged, sound


@dataclass(frozen=True)
class Odd:
    """`wave`: what was encoded, (N, C) at rate_hz, or several of these with their rates; None: rejected."""

    name: bytes
    data: bytes
    parts: tuple[tuple[np.ndarray, int], ...] = ()
    rejected: str = ""  # words of the reason
    lossy: bool = True

    @property
    def seconds(self) -> float:
        return sum(len(wave) / rate_hz for wave, rate_hz in self.parts)


Add = Callable[..., None]
LOST = "damaged or missing"


def every(music: pieces.Music) -> list[Odd]:
    made: list[Odd] = []

    def add(name: str | bytes, data: bytes, *waves, rejected="", rate_hz=RATE_HZ, lossy=True) -> None:
        parts = tuple(wave if isinstance(wave, tuple) else (wave, rate_hz) for wave in waves)
        raw = name if isinstance(name, bytes) else name.encode()
        made.append(Odd(raw, data, parts, rejected, lossy))

    for kind in (containers, tags_of_mp3, tags_elsewhere, chains, holes, lengths, names, refusals):
        kind(music, add)
    assert len({odd.name for odd in made}) == len(made) >= 120, len(made)
    return made


def containers(music, add: Add) -> None:
    """Every container and codec that is written here."""
    for subtype in ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]:
        add(
            f"{subtype}.wav",
            sound(wave := music(2), "WAV", subtype),
            wave,
            lossy=subtype[1:] in ("LAW", "CM_U8"),
        )
    for kind, ending in (("AIFF", "aif"), ("CAF", "caf"), ("AU", "au"), ("W64", "w64"), ("RF64", "rf64")):
        add(f"pcm.{ending}", sound(wave := music(2), kind, "PCM_16"), wave, lossy=False)
    for rate_hz in (8_000, 16_000, 22_050, 48_000, 96_000, 192_000):
        wave = music(2, rate_hz=rate_hz)
        add(f"{rate_hz}.flac", sound(wave, "FLAC", "PCM_16", rate_hz), wave, rate_hz=rate_hz, lossy=False)
    for channels in (1, 6, 8):
        wave = music(2, channels)
        add(f"{channels} channels.flac", sound(wave, "FLAC", "PCM_16"), wave, lossy=False)
    for codec, container, ending in (
        ("alac", "ipod", "m4a"), ("aac", "ipod", "m4b"), ("aac", "ipod", "m4r"), ("aac", "mp4", "mp4"),
        ("aac", "mov", "mov"), ("aac", "mp4", "m4v"), ("aac", "adts", "aac"), ("aac", "matroska", "mkv"),
        ("flac", "matroska", "mka"), ("aac", "3gp", "3gp"), ("mp3", "avi", "avi"), ("ac3", "ac3", "ac3"),
        ("eac3", "eac3", "eac3"), ("wmav2", "asf", "wma"), ("wmav1", "asf", "asf"), ("tta", "tta", "tta"),
        ("wavpack", "wv", "wv"), ("mp2", "mp2", "mp2"), ("mp2", "mp2", "mpga"), ("pcm_s16be", "aiff", "aifc"),
        ("adpcm_ms", "wav", "wave"), ("alac", "caf", "alac.caf"),
    ):  # fmt: skip
        wave, options = music(3), {"b": "320k"} if codec not in ("alac", "flac", "tta", "wavpack") else {}
        add(f"{codec}.{ending}", libav(wave, container, codec, options=options), wave)
    for container, ending in (
        ("ogg", "opus"),
        ("webm", "webm"),
        ("webm", "weba"),
        ("ogg", "ogv"),
        ("mp4", "opus.mp4"),
    ):
        wave = music(3, rate_hz=48_000)
        add(f"opus.{ending}", libav(wave, container, "libopus", 48_000, {"b": "160k"}), wave, rate_hz=48_000)
    add("vorbis.oga", sound(wave := music(3), "OGG", "VORBIS"), wave)
    add("flac.ogg", libav(wave := music(3), "ogg", "flac"), wave, lossy=False)
    add("cbr.mp3", libav(wave := music(3), "mp3", "libmp3lame", options={"b": "192k"}), wave)
    add("vbr.mp3", libav(wave := music(3), "mp3", "libmp3lame", options={"q": "2"}), wave)
    add("other encoder.mp3", sound(wave := music(3), "MP3", "MPEG_LAYER_III"), wave)
    wave = music(3, 1, 22_050)
    add("mpeg 2.mp3", libav(wave, "mp3", "libmp3lame", 22_050, {"b": "96k"}), wave, rate_hz=22_050)
    wave = 0.9 * music(3, 1, 8_000)
    add("telephone.amr", libav(wave, "amr", "libopencore_amrnb", 8_000, {"b": "12.2k"}), wave, rate_hz=8_000)
    wanted, other = music(3), music(3)
    for place in (0, 1):
        waves = [other, wanted] if place else [wanted, other]
        add(f"default track {place}.m4a", pieces.tracks(waves, "mp4", "aac", default=place), wanted)
        add(f"default track {place}.mka", pieces.tracks(waves, "matroska", "flac", default=place), wanted)
    add("dsd.dsf", *_dsf(music(1)[:, 0]))


def _dsf(wave: np.ndarray) -> tuple:
    """One-bit audio at 2.8 MHz by a first-order modulator."""
    repeated, bits, held = np.repeat(np.clip(wave, -0.5, 0.5), 64), [], 0.0
    for value in repeated.tolist():
        bit = held + value > 0
        held += value - (1.0 if bit else -1.0)
        bits.append(bit)
    data = np.packbits(np.array(bits), bitorder="little").tobytes()
    count, blocks = len(bits), -(-len(data) // 4096)
    data = data.ljust(blocks * 4096, b"\x69")
    fmt = struct.pack("<4sQIIIIIIQII", b"fmt ", 52, 1, 0, 1, 1, RATE_HZ * 64, 1, count, 4096, 0)
    body = fmt + struct.pack("<4sQ", b"data", 12 + len(data)) + data
    return struct.pack("<4sQQQ", b"DSD ", 28, 28 + len(body), 0) + body, np.clip(wave, -0.5, 0.5)[:, None]


def mp3(wave, **options) -> bytes:
    """Frames alone: no Xing header, no tag."""
    muxer = {"write_xing": "0", "id3v2_version": "0"}
    return libav(wave, "mp3", "libmp3lame", options={"b": "256k"} | options, muxer=muxer)


def tags_of_mp3(music, add: Add) -> None:
    """Known tags before, between and after the frames."""
    cover = picture(160_000)
    for name, tag in {
        "id3v2.2": id3v2(b"x" * 99, 2), "id3v2.3": id3v2(picture(5_000), 3), "id3v2.4": id3v2(picture(5_000)),
        "id3v2 over a mebibyte": id3v2(picture(1_300_000)), "id3v2 footer": id3v2(picture(700), footer=True),
        "two id3v2": id3v2(b"a" * 50, 3) + id3v2(cover), "ape": ape(picture(9_000)),
    }.items():  # fmt: skip
        add(f"{name} first.mp3", tag + mp3(wave := music(3)), wave)
    for name, tag in {
        "ape": ape(cover), "ape and id3v1": ape(cover) + id3v1(), "ape version 1": ape(cover, 1000, False),
        "ape without header": ape(cover, 2000, False), "id3v1": id3v1(), "id3v2": id3v2(cover),
        "id3v2 footer": id3v2(cover, footer=True), "lyrics and id3v1": lyrics3(b"la " * 9_000) + id3v1(),
        "id3v2, ape and id3v1": id3v2(cover) + ape(cover) + id3v1(b"    "),
        "id3v2 and zeros": id3v2(cover) + bytes(90_000),
    }.items():  # fmt: skip
        add(f"{name} last.mp3", mp3(wave := music(3)) + tag, wave)
    for name, tag in {
        "id3v2": id3v2(cover, 3), "id3v1 and id3v2": id3v1() + id3v2(cover), "ape": ape(cover),
        "ape without header": ape(cover, 2000, False), 
        "all": ape(cover) + id3v1() + id3v2(cover) + id3v2(cover, 3),
        "lyrics": lyrics3(b"la " * 20_000) + id3v1(), "id3v2 and padding": id3v2(cover) + bytes(4_000),
        "id3v2 that promises too much": b"ID3\x03\0\0" + pieces.syncsafe(400_000) + b"PRIV" + bytes(2_000),
    }.items():  # fmt: skip
        first, second = music(3), music(3)
        add(f"{name} between.mp3", mp3(first) + tag + mp3(second), first, second)
    huge_ape = ape(b"")[:12] + b"\0\0\0\1" + ape(b"")[16:32]
    huge_id3v2 = b"ID3\x04\0\0" + pieces.syncsafe(9_000_000) + bytes(200)
    frames = b"".join(pieces.frames(mp3(music(1))))
    for name, before, after in (
        ("junk first", picture(70_000), b""), ("junk last", b"", picture(70_000)),
        ("zeros first", bytes(50_000), b""), ("ape that promises too much first", huge_ape, b""),
        ("id3v2 that promises more than the file first", huge_id3v2, b""),
        ("mp3 frames in an ape tag last", b"", ape(frames)),
    ):  # fmt: skip
        add(f"{name}.mp3", before + mp3(wave := music(5)) + after, wave)
    long = music(40)
    add("a song with 160 kB of tag at its end.mp3", mp3(long, b="192k") + ape(cover) + id3v1(), long)


def tags_elsewhere(music, add: Add) -> None:
    """Known tags around other containers."""
    for ending, make in {
        "wav": lambda w: sound(w, "WAV", "PCM_16"), "aiff": lambda w: sound(w, "AIFF", "PCM_16"),
        "flac": lambda w: sound(w, "FLAC", "PCM_16"), "ogg": lambda w: sound(w, "OGG", "VORBIS"),
        "caf": lambda w: sound(w, "CAF", "PCM_16"), "w64": lambda w: sound(w, "W64", "PCM_16"),
        "m4a": lambda w: libav(w, "ipod", "aac"), "mka": lambda w: libav(w, "matroska", "flac"),
        "wv": lambda w: libav(w, "wv", "wavpack"), "aac": lambda w: libav(w, "adts", "aac"),
    }.items():  # fmt: skip
        add(f"id3v2 before.{ending}", id3v2(picture(3_000)) + make(wave := music(3)), wave)
        if ending not in ("m4a", "caf", "w64"):
            add(
                f"id3v2 footer and another before.{ending}",
                id3v2(b"x", footer=True) + id3v2(b"y" * 9, 3) + make(wave := music(3)),
                wave,
            )
    for name, tag in {"id3v1": id3v1(), "ape": ape(picture(60_000)), "id3v2": id3v2(picture(60_000))}.items():
        add(f"{name} after.aac", libav(wave := music(3), "adts", "aac") + tag, wave)
    for ending, tag in {"wv": ape(picture(20_000)), "tta": ape(b"x" * 99) + id3v1()}.items():
        codec = {"wv": "wavpack", "tta": "tta"}[ending]
        add(f"tag after.{ending}", libav(wave := music(3), ending, codec) + tag, wave)
    add("id3v1 after.flac", sound(wave := music(3), "FLAC", "PCM_16") + id3v1(), wave)
    parts = [music(2) for _ in range(3)]  # segments of an HTTP live stream, joined
    stamp = id3v2(b"com.apple.streaming.transportStreamTimestamp\0" + bytes(8))
    add("live stream.aac", b"".join(stamp + libav(wave, "adts", "aac") for wave in parts), *parts)


def chains(music, add: Add) -> None:
    """Chained Ogg: every link has its own clock, serial number, rate and channels."""
    hour = {"vorbis": 36_000 * RATE_HZ, "opus": 36_000 * 48_000, "flac": 36_000 * RATE_HZ}

    def link(codec, seconds=3.0, channels=2, rate_hz=RATE_HZ):
        rate_hz = 48_000 if codec == "opus" else rate_hz
        wave = music(seconds, channels, rate_hz)
        if codec == "vorbis":
            return (wave, rate_hz), sound(wave, "OGG", "VORBIS", rate_hz)
        return (wave, rate_hz), libav(wave, "ogg", {"opus": "libopus", "flac": "flac"}[codec], rate_hz)

    for codec, later in hour.items():
        for name, first, second in (
            ("the same clock", {}, {}), ("other serial", {}, {"serial": 7}),
            ("forward", {}, {"granules": later}), ("backward", {"granules": later}, {}),
            ("all new", {"granules": later}, {"granules": 2 * later, "serial": 9}),
        ):  # fmt: skip
            (wave, one), (again, two) = link(codec), link(codec)
            add(f"chain of {codec}, {name}.ogg", repaged(one, **first) + repaged(two, **second), wave, again)
        (wave, one), (again, two) = link(codec), link(codec, channels=1)
        add(f"chain of {codec}, other channels.ogg", one + two, wave, again)
    for codec in ("vorbis", "flac"):
        (wave, one), (again, two) = link(codec), link(codec, rate_hz=22_050)
        add(f"chain of {codec}, other rate.ogg", one + two, wave, again)
    (wave, one), (again, two) = link("vorbis"), link("opus")
    add("chain of two codecs.ogg", one + two, wave, again)
    many = [link("vorbis", 1.5) for _ in range(5)]
    add("chain of five.ogg", b"".join(data for _, data in many), *(wave for wave, _ in many))
    for codec in ("vorbis", "opus"):  # a clock that jumps where no page is missing loses nothing
        (wave, rate_hz), one = link(codec, 6)
        all_pages = pieces.pages(one)
        half = len(all_pages) // 2
        jumped = b"".join(all_pages[:half]) + repaged(b"".join(all_pages[half:]), 30 * rate_hz)
        add(f"clock of {codec} jumps.ogg", jumped, (wave, rate_hz))
    for codec in ("vorbis", "opus", "flac"):
        (wave, rate_hz), one = link(codec, 6)
        all_pages = pieces.pages(one)
        first = _first_of_sound(all_pages)
        late = [_numbered(page, 9_000) for page in all_pages[first:]]  # a recorder joined a stream
        captured = repaged(b"".join(late), 3_600 * rate_hz)
        add(f"capture of {codec}.ogg", b"".join(all_pages[:first]) + captured, (wave, rate_hz))
        add(f"headers of {codec} between.ogg", b"".join(all_pages[:first]) + one, (wave, rate_hz))
        beheaded = b"".join(pieces.pages(repaged(link(codec)[1], serial=5))[1:])
        add(f"chain of {codec}, a link without its first page.ogg", one + beheaded, rejected=LOST)
    wave, one = link("opus")
    add("begins after 30 days.opus", repaged(one, 30 * 24 * 3600 * 48_000), wave)


def _first_of_sound(some: list[bytes]) -> int:
    return next(number for number, page in enumerate(some) if page[6:14] != bytes(8))


def _numbered(page: bytes, later: int) -> bytes:
    """The page with a later number; its checksum is that of `repaged`."""
    number = int.from_bytes(page[18:22], "little") + later
    return page[:18] + number.to_bytes(4, "little") + page[22:]


def holes(music, add: Add) -> None:
    """More than a scratch is missing, wherever it is; less is kept."""
    for seconds, codec in ((4, "VORBIS"), (14, "VORBIS"), (4, "OPUS"), (14, "OPUS")):
        rate_hz = 48_000 if codec == "OPUS" else RATE_HZ
        data = sound(music(seconds, rate_hz=rate_hz), "OGG", codec, rate_hz)
        all_pages = pieces.pages(data)
        first = _first_of_sound(all_pages)
        audio = range(first + 1, len(all_pages) - 2)
        for name, place in (
            ("first", first),
            ("early", audio[0]),
            ("middle", audio[len(audio) // 2]),
            ("late", audio[-1]),
            ("last but one", len(all_pages) - 2),
        ):
            left = b"".join(page for number, page in enumerate(all_pages) if number != place)
            add(f"{codec} of {seconds} s, a page lost {name}.ogg", left, rejected=LOST)
            torn = list(all_pages)
            torn[place] = torn[place][:-1] + bytes([torn[place][-1] ^ 1])
            add(f"{codec} of {seconds} s, a page torn {name}.ogg", b"".join(torn), rejected=LOST)
    frames = pieces.frames(mp3(music(20)))
    add(
        "zeros amid.mp3",
        b"".join(frames[:300]) + bytes(60_000) + b"".join(frames[450:]),
        rejected=LOST,
    )
    wave = music(20)
    frames = pieces.frames(mp3(wave))
    scratched = bytearray(b"".join(frames))
    scratched[120_000:120_060] = bytes(60)
    add("a scratch.mp3", bytes(scratched), wave)
    flac = bytearray(sound(music(10), "FLAC", "PCM_16"))
    for at in range(30_000, len(flac) - 9_000, 40_000):
        flac[at : at + 99] = picture(99)
    add("scratched all over.flac", bytes(flac), rejected=LOST)


def lengths(music, add: Add) -> None:
    """Headers that promise what the file does not hold, or nothing."""
    data = bytearray(
        libav(wave := music(3), "mp3", "libmp3lame", options={"b": "128k"}, muxer={"id3v2_version": "0"})
    )
    at = max(data.find(b"Xing"), data.find(b"Info"))
    data[at + 8 : at + 12] = b"\xff" * 4
    add("xing says 2**32 frames.mp3", bytes(data), wave)
    for name, total in (("none", 0), ("2**36", 2**36 - 1)):
        flac = bytearray(sound(wave := music(3), "FLAC", "PCM_16"))
        flac[21] = flac[21] & 0xF0 | total >> 32
        flac[22:26] = struct.pack(">I", total & 0xFFFFFFFF)
        add(f"streaminfo says {name}.flac", bytes(flac), wave)
    for name, size in (("0", 0), ("2**32", 0xFFFFFFFF)):
        wav = bytearray(sound(wave := music(3), "WAV", "PCM_16"))
        at = wav.index(b"data")
        wav[at + 4 : at + 8], wav[4:8] = struct.pack("<I", size), struct.pack("<I", size)
        if size:
            add(f"data of {name} bytes.wav", bytes(wav), wave, lossy=False)
    class_of = {"webm": ("webm", "libopus", 48_000), "mka": ("matroska", "flac", RATE_HZ)}
    for ending, (container, codec, rate_hz) in class_of.items():
        wave = music(3, rate_hz=rate_hz)
        add(
            f"live.{ending}",
            libav(wave, container, codec, rate_hz, muxer={"live": "1"}),
            wave,
            rate_hz=rate_hz,
        )
    for ending, data in {
        "wav": sound(wave := music(4), "WAV", "PCM_16"), "flac": sound(wave, "FLAC", "PCM_16"),
        "mp3": mp3(wave), "ogg": sound(wave, "OGG", "VORBIS"),
    }.items():  # fmt: skip
        add(f"half of it.{ending}", data[: len(data) // 2], wave[: len(wave) // 2])
    vbri = bytearray(pieces.frames(mp3(wave := music(3)))[0])
    vbri[36:62] = b"VBRI" + struct.pack(">HHHIIHHHH", 1, 0, 75, 9, 2**31, 0, 1, 1, 0)
    add("vbri says 2**31 frames.mp3", bytes(vbri) + mp3(wave), wave)


def names(music, add: Add) -> None:
    """Names that file systems allow."""
    for name in (
        b"ends in a space.wav ", b"\xff\xfe.wav", b"bell \x07 and \x1b[31mred\x1b[0m.wav", b"new\nline.wav",
        b"tab\t.wav", "café.WAV".encode(), "cafe\u0301.wav".encode(), "音楽 🎵.wav".encode(), b"-rf.wav",
        b"a" * 251 + b".wav", b"'\"$(id).wav", b"%s %d.wav", b".hidden.wav",
    ):  # fmt: skip
        add(name, sound(wave := music(1), "WAV", "PCM_16"), wave, lossy=False)


def refusals(music, add: Add) -> None:
    """What is no music in a file of music's name."""
    add("empty.mp3", b"", rejected="empty file")
    for name, data in {
        "page.mp3": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 40,
        "text.flac": b"no music in here\n" * 500, "zeros.wav": bytes(50_000), "noise.ogg": picture(50_000),
        "header.wav": b"RIFF\x24\x00\x00\x00WAVEfmt ", "tag alone.mp3": id3v2(picture(9_000)),
        "no moov.m4a": libav(music(2), "ipod", "aac")[:9_000],
    }.items():  # fmt: skip
        add(name, data, rejected=" ")
    wide = bytearray(sound(music(1), "WAVEX", "PCM_32"))
    wide[38:40] = (24).to_bytes(2, "little")  # valid bits: libav takes them for all bits
    add("24 valid bits of 32.wav", bytes(wide), rejected="24 valid bits in samples of 32")
    nothing = sound(music(0), "WAV", "PCM_16")
    add("no sample.wav", nothing, rejected="0 samples")
    bad = music(1).copy()
    bad[500] = np.nan
    add("not a number.wav", sound(bad, "WAV", "FLOAT"), rejected="NaN")
    protected = bytearray(libav(music(2), "ipod", "aac").replace(b"mp4a", b"drms"))
    at = protected.index(b"mdat") + 4
    protected[at : at + 30_000] = picture(30_000)  # encrypted
    add("protected.m4p.m4a", bytes(protected), rejected=" ")


def write(folder: Path, odds: list[Odd]) -> None:

    folder.mkdir(parents=True)
    for odd in odds:
        with open(os.path.join(os.fsencode(folder), odd.name), "wb") as file:
            file.write(odd.data)
