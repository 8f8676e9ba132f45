"""The three ways to a crop that `bench_loader` compares: the whole file, stock webdataset, ours. Letters: B
clips, N samples."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from stages.pretrain.data.loader import Loader
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from stages.shards import column
from stages.shards.record import Record, recipe8
from stages.shards.storage import Storage
from tests.stages.pretrain.corpus import write_plan

CROP, HOP, MICRO = 120_000, 320, 8
SEGMENT = 720_000  # 30 s
K, SIZE, BINS = 8, 1024, 336
SHUFFLE = 200  # segments in webdataset's buffer


def write_corpus(root: Path, shards: int, recordings: int, segments: int) -> None:
    """A labelled OUT of the real sizes, and its recordings as whole files: wav, codes.npy, cqt.npy. Noise:
    bytes cost the same."""
    import yaml

    from stages.label.decode import wav_bytes

    rng, storage, plan = np.random.default_rng(0), Storage(root / "out"), []
    recipes = {
        "audio": {"stage": "decode", "format": "wav"},
        "codes": {"stage": "codes", "teacher": {"codebooks": K, "codebook_size": SIZE}},
        "cqt": {"stage": "cqt", "bins": BINS, "fmin_hz": 32.7, "bins_per_octave": 48},
    }
    names = {"audio": "audio"} | {k: f"{k}-{recipe8(recipes[k])}" for k in ("codes", "cqt")}
    (root / "files").mkdir(parents=True)
    for s in range(shards):
        shard, own = f"s{s:012x}", [f"{s:08x}{r:08x}" for r in range(recordings)]
        whole = {
            r: {
                "audio": rng.integers(-9000, 9000, segments * SEGMENT).astype(np.int16),
                "codes": rng.integers(0, SIZE, (segments * SEGMENT // HOP, K)).astype(np.uint16),
                "cqt": rng.random((segments * SEGMENT // HOP, BINS), np.float32).astype(np.float16),
            }
            for r in own
        }
        for r, fields in whole.items():
            soundfile.write(root / "files" / f"{r}.wav", fields["audio"], 24_000, "PCM_16")
            np.save(root / "files" / f"{r}.codes.npy", fields["codes"])
            np.save(root / "files" / f"{r}.cqt.npy", fields["cqt"])
        sha = None
        for kind, name in names.items():
            with column.publishing(storage, name, shard) as publication:
                for r in own:
                    for i in range(segments):
                        step = SEGMENT if kind == "audio" else SEGMENT // HOP
                        part = whole[r][kind][i * step : (i + 1) * step]
                        member = (
                            {"wav": wav_bytes(part), "json": b"{}"}
                            if kind == "audio"
                            else {f"{kind}.npy": column.npy_bytes(part)}
                        )
                        row = {
                            "recording": r,
                            "start": i * SEGMENT,
                            "samples": SEGMENT,
                            "frames": SEGMENT // HOP,
                        }
                        publication.writer.add(f"{r}-{i:05d}", member, row, {})
                    publication.writer.keep({})
                publication.record = Record(
                    shard=shard,
                    column=name,
                    recipe=recipes[kind],
                    inputs=len(own),
                    kept=len(own),
                    rejects=[],
                    source_sha256=sha,
                    software={},
                    device="cpu",
                    **publication.writer.finish(),
                )
            sha = sha or publication.record.sha256
        plan += [{"recording": r, "shard": shard, "split": "train"} for r in own]
    write_plan(storage, plan)
    known = {names[k]: recipe for k, recipe in recipes.items()}
    storage.write("recipe.yaml", yaml.safe_dump({"plan": {}, "columns": known, "current": names}).encode())


def whole_files(folder: Path) -> Iterator[int]:
    """As the original: read and decode the whole file, and its labels, for every crop. Yields crops made."""
    paths, rng = sorted(folder.glob("*.wav")), np.random.default_rng(0)
    while True:
        waves, codes, cqts = [], [], []
        for _ in range(MICRO):
            path = paths[rng.integers(len(paths))]
            wave = soundfile.read(path, dtype="float32")[0]
            code, cqt = (np.load(path.with_suffix(f".{kind}.npy")) for kind in ("codes", "cqt"))
            first = int(rng.integers((len(wave) - CROP) // HOP + 1))
            frames = slice(first, first + CROP // HOP)
            waves.append(torch.from_numpy(wave[first * HOP :][:CROP]))
            codes.append(torch.from_numpy(code[frames].astype(np.int64)))
            cqts.append(torch.from_numpy(cqt[frames].astype(np.float32)))
        yield len([torch.stack(part) for part in (waves, codes, cqts)][0])


def stock_webdataset(tars: Path, crops_per_segment: int = 1) -> Iterator[int]:
    """Merged tars through the package's own shuffle, decoders and batching; crops are cut from each decoded
    segment."""
    import webdataset as wds

    rng = np.random.default_rng(0)

    def cut(samples) -> Iterator[tuple]:
        for sample in samples:
            for _ in range(crops_per_segment):
                wave, code, cqt = sample["wav"], sample["codes.npy"], sample["cqt.npy"]
                first = int(rng.integers((len(wave) - CROP) // HOP + 1))
                frames = slice(first, first + CROP // HOP)
                yield (
                    torch.from_numpy(wave[first * HOP :][:CROP]),
                    torch.from_numpy(code[frames].astype(np.int64)),
                    torch.from_numpy(cqt[frames].astype(np.float32)),
                )

    def wav(key: str, data: bytes):
        return soundfile.read(io.BytesIO(data), dtype="float32")[0] if key.endswith("wav") else None

    paths = sorted(map(str, tars.glob("*.tar")))
    dataset = (
        wds.WebDataset(paths, shardshuffle=len(paths)).repeat().shuffle(SHUFFLE).decode(wav).compose(cut)
    )
    for batch in dataset.batched(
        MICRO, collation_fn=lambda samples: [torch.stack(part) for part in zip(*samples, strict=True)]
    ):
        yield len(batch[0])


def ours(out: Path, cache: Path, workers: int = 0, mixture: float = 0.5) -> Iterator[int]:
    """The training loader as it is, masks included; mixture 0 makes the crops the others make."""
    data = Data(corpora=(str(out),), cache=str(cache), workers=workers)
    pinned = pin(data)
    loader = Loader(pinned, data, Masking(), Mixture(prob=mixture), 374, MICRO)
    for batch in loader.stream(State(pinned.fingerprint, 0, 64)):
        yield len(batch.keys)
