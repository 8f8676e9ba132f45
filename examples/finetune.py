"""Fine-tune an exported model to name genres: a folder in GTZAN's layout, GENRE/*.wav.

    python examples/finetune.py models/mine gtzan/genres_original --out models/genres

A fifth of the files, drawn by --seed, is for validation; or give --train and --valid, lists of paths like
blues/blues.00000.wav: GTZAN's fault-filtered ones keep artists apart, so that accuracy is not too high."""

import argparse
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("music", type=Path)
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--train", type=Path)
parser.add_argument("--valid", type=Path)
for name, default in dict(epochs=10, batch=16, crop_s=5, seed=0, lr=3e-5, head_lr=1e-3).items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
args = parser.parse_args()

draw = np.random.default_rng(args.seed)
torch.manual_seed(args.seed)
genres = sorted(folder.name for folder in args.music.iterdir() if folder.is_dir())
train = draw.permutation(sorted(str(p.relative_to(args.music)) for p in args.music.glob("*/*.wav"))).tolist()
valid = [train.pop() for _ in range(len(train) // 5)]
if args.train:
    train, valid = args.train.read_text().split(), args.valid.read_text().split()

device = "cuda" if torch.cuda.is_available() else "cpu"
prepare = AutoFeatureExtractor.from_pretrained(args.model)
encoder = AutoModel.from_pretrained(args.model, trust_remote_code=True).to(device)
head = nn.Linear(encoder.config.hidden_size, len(genres), device=device)
rates = [{"params": part.parameters(), "lr": lr} for part, lr in ((encoder, args.lr), (head, args.head_lr))]
optimizer = torch.optim.AdamW(rates)


def crop(name, learn):
    """At random to learn from, else from the middle."""
    wave, rate = soundfile.read(args.music / name, dtype="float32", always_2d=True)
    wave, samples = soxr.resample(wave.mean(1), rate, 24_000), args.crop_s * 24_000
    spare = max(0, len(wave) - samples)
    return wave[draw.integers(spare + 1) if learn else spare // 2 :][:samples]


def one_pass(names, learn):
    """Accuracy; with `learn`, of the model as it changes."""
    encoder.train(learn)
    right = 0
    for batch in (names[at : at + args.batch] for at in range(0, len(names), args.batch)):
        target = torch.tensor([genres.index(name.split("/")[0]) for name in batch], device=device)
        waves = [crop(name, learn) for name in batch]
        inputs = prepare(waves, sampling_rate=24_000, padding=True, return_tensors="pt").to(device)
        with torch.set_grad_enabled(learn):
            logits = head(encoder(**inputs).last_hidden_state.mean(1))
        if learn:
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, target).backward()
            optimizer.step()
        right += (logits.argmax(1) == target).sum().item()
    return right / len(names)


for epoch in range(1, args.epochs + 1):
    fitted, accuracy = one_pass(draw.permutation(train).tolist(), True), one_pass(valid, False)
    print(f"epoch {epoch}: accuracy {fitted:.3f} in training, {accuracy:.3f} in validation", flush=True)
encoder.save_pretrained(args.out)
prepare.save_pretrained(args.out)
torch.save({"genres": genres, "head": head.cpu().state_dict()}, args.out / "head.pt")
