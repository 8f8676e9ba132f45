"""Sizes of configs/pretrain/ladder, and how much music an hour of a GPU can be: `python -m examples.ladder`.

Nothing is measured here: a GPU does TFLOPS of the model's arithmetic, and the constant-Q transform of the
front-end is CQT times as fast as the music plays. Defaults: an H200 (docs/training.md). Reading must keep up.
"""

import argparse
from pathlib import Path

import torch

from stages.pretrain.config import load
from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.mert import Mert
from stages.signal.rates import RATE_HZ

CODES = (CodeColumn("codes", 8, 1024),)
CQT_BINS = 336


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.ladder", description=__doc__.split("\n")[0])
    parser.add_argument("--tflops", type=float, default=200.0, help="of the model's arithmetic")
    parser.add_argument("--cqt", type=float, default=6160.0, help="seconds of audio a second")
    given = parser.parse_args()
    print(
        "| step | encoder | GFLOP a second of audio | hours of audio a GPU-hour | its run: audio, GPU-hours |"
    )
    print("|---|---|---|---|---|")
    folder, found = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "ladder", []
    for path in folder.glob("*.yaml"):
        config = load(str(path))
        with torch.device("meta"):
            net = Mert(config.model, config.objective, CODES, CQT_BINS)
        encoder = sum(n for part, n in net.parts().items() if not part.endswith(("_head", "_heads")))
        per_audio_s = net.flops(config.data.samples) / (config.data.samples / RATE_HZ)
        heard_h = config.optim.updates * config.optim.global_batch * config.data.samples / RATE_HZ / 3600
        speed = 1 / (per_audio_s / (1e12 * given.tflops) + 1 / given.cqt)
        row = f"| {path.stem} | {encoder / 1e6:.1f}M | {per_audio_s / 1e9:.1f} | {speed:,.0f} "
        found.append((encoder, row + f"| {heard_h:,.0f} h, {heard_h / speed:.3g} |"))
    print("\n".join(row for _, row in sorted(found)))


if __name__ == "__main__":
    main()
