"""Pictures and sound of a segment as small data URIs. Letters: N samples at 24 kHz, T frames, F bins, K
codebooks."""

import base64
import io
from fractions import Fraction

import av
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from stages.signal.rates import RATE_HZ

WIDTH = 320  # pixels
OPUS_BITS_A_S = 24_000  # mono, 3 kB a second
CQT_RANGE_DB = 70.0  # below the segment's loudest value


def uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def waveform(wave_N: np.ndarray) -> str:
    """Full scale ±1."""
    edges = np.linspace(0, len(wave_N), WIDTH + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(wave_N, edges), np.maximum.reduceat(wave_N, edges)
    figure = Figure(figsize=(WIDTH / 100, 0.5), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.fill_between(np.arange(WIDTH), low, high, color="#4a8fd0", linewidth=0.4)
    axes.set(xlim=(0, WIDTH - 1), ylim=(-1, 1))
    axes.axis("off")
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True)
    return uri("image/png", out.getvalue())


def cqt(frames_TF: np.ndarray, log: bool) -> str:
    """Low pitch at the bottom, in decibels below the loudest."""
    decibels = frames_TF * (20 / np.log(10)) if log else 20 * np.log10(np.maximum(frames_TF, 1e-6))
    size = (min(WIDTH, len(decibels)), min(112, decibels.shape[1]))
    picture = Image.fromarray(decibels.T[::-1].astype(np.float32))
    shown_FT = np.asarray(picture.resize(size, Image.Resampling.BOX))
    shown = np.clip((shown_FT - shown_FT.max(initial=-120.0)) / CQT_RANGE_DB + 1, 0, 1)
    return _image(colormaps["magma"](shown, bytes=True), "webp", quality=75)


def codes(codes_TK: np.ndarray, size: int) -> str:
    """Every n-th frame, for codes have no mean."""
    shown_KT = codes_TK[:: max(1, len(codes_TK) // WIDTH)].T / max(size - 1, 1)
    return _image(colormaps["turbo"](shown_KT, bytes=True), "png")


def opus(wave_N: np.ndarray) -> str:
    out, options = io.BytesIO(), {"compression_level": "2"}
    with av.open(out, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE_HZ, layout="mono", options=options)
        stream.bit_rate = OPUS_BITS_A_S
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave_N[None], np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, 0, Fraction(1, RATE_HZ)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return uri("audio/ogg", out.getvalue())


def _image(rgba: np.ndarray, form: str, **options: int) -> str:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgba[..., :3])).save(out, form, **options)
    return uri(f"image/{form}", out.getvalue())
