"""Figures beside the table of `bench_teachers`: what blocks, storage, tables and `cqt: online` cost."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tests.bench.part_teachers import RATE_HZ
from tests.encodec_weights import cached_weights
from tests.excerpt import ArrayWave, excerpt


def notes(threads: int) -> Iterator[str]:
    torch.set_num_threads(threads)
    yield blocks(threads)
    yield from half(threads)
    yield from storage()
    yield tables()
    yield online()


def blocks(threads: int) -> str:
    """How many of EnCodec's tokens a recording in blocks of 1 s changes, against blocks of 60 s."""
    from stages.label.teachers.encodec import Encodec

    changed = total = 0
    weights = Encodec().locate(str(cached_weights()))
    for number in range(4):
        wave = ArrayWave(excerpt(number, 5.0, 60.0))
        short, long = (
            np.concatenate(list(Encodec(block_s=s).open(weights, "cpu", threads)(wave))) for s in (1.0, 60.0)
        )
        changed, total = changed + int((short != long).sum()), total + short.size
    return f"encodec: blocks of 1 s instead of 60 s change {changed} of {total:,} tokens"


def half(threads: int) -> Iterator[str]:
    """Tokens that half precision leaves as they are in fp32, first and last codebook, on 80 s of music."""
    from stages.label.teachers.encodec import Encodec

    weights = Encodec().locate(str(cached_weights()))

    def codes(dtype: str) -> np.ndarray:
        label = Encodec(dtype=dtype).open(weights, "cpu", threads)
        return np.concatenate([block for number in range(4) for block in label(ArrayWave(excerpt(number)))])

    exact = codes("fp32")
    for dtype in ("bf16", "fp16"):
        share = (codes(dtype) == exact).mean(0)
        yield (
            f"encodec in {dtype}: {share.mean():.2%} of tokens as in fp32; first codebook "
            f"{share[0]:.2%}, last {share[-1]:.2%}"
        )


def storage() -> Iterator[str]:
    """What each way of storing CQT frames loses, on four minutes of music, as a record's facts state it."""
    from stages.label.cqt import CqtStage

    waves = []
    for number in range(4):
        wave = ArrayWave(excerpt(number, 5.0, 60.0).copy())
        wave.recording, row = f"r{number}", {"recording": f"r{number}", "start": 0, "samples": wave.samples}
        wave.segments = [row | {"key": f"r{number}-0", "frames": wave.samples // 320}]
        waves.append(wave)
    for magnitude in ("linear", "log"):
        for kind in ("float16", "uint8"):
            run = CqtStage(magnitude=magnitude, storage=kind).open(None, "cpu", 1)
            begun = time.perf_counter()
            for _ in run(waves):
                pass
            facts = run.facts()[kind]
            speed = sum(w.samples for w in waves) / RATE_HZ / (time.perf_counter() - begun)
            yield (
                f"cqt stored as {kind}, {magnitude}: error {facts['max_abs_error']:.3g} at most, "
                f"{facts['relative_rms_error']:.2e} of the RMS; {speed:.0f} × real time; "
                f"{75 * 336 * (2 if kind == 'float16' else 1)} bytes a second of audio"
            )


def tables() -> str:
    from stages.signal.cqt import ConstantQ, CqtSpec

    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        ConstantQ(CqtSpec(), Path(folder))
        built = time.perf_counter() - begun
        begun = time.perf_counter()
        ConstantQ(CqtSpec(), Path(folder))
        return (
            f"cqt tables: built and cached in {built:.1f} s, read again in "
            f"{time.perf_counter() - begun:.2f} s"
        )


def online() -> str:
    """Eight crops of 5 s with their context, on the CPU and on a GPU where there is one."""
    from stages.signal.online import OnlineCqt
    from stages.signal.tables import table_cache

    found = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        cqt = OnlineCqt(device=device, cache_dir=table_cache())
        span = 120_000 + 2 * cqt.context_samples
        context_BN = torch.from_numpy(np.stack([excerpt(n % 4, 5.0 + n, 10.0)[:span] for n in range(8)])).to(
            device
        )
        walls = []
        for _ in range(6):
            begun = time.perf_counter()
            cqt(context_BN)[0, 0, 0].item()
            walls.append(time.perf_counter() - begun)
        found.append(f"{8 * 5 / min(walls):.0f} × real time on {device}")
    return (
        f"cqt online, 8 crops of 5 s: {', '.join(found)}; it spares the column's 50,400 bytes a "
        f"second of audio on disk"
    )
