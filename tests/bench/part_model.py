"""One training step, ours or the reference's, alone in a process: `python -m tests.bench.part_model
ours|theirs …` prints JSON.

B clips, N samples, T frames, S masked frames, D width, K codebooks of C codes of width E, F CQT bins.
"""

import argparse
import json
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.config import Model
from stages.pretrain.model.mert import Mert
from stages.pretrain.model.objective import Objective

# Layers are never dropped, so that every step does the same work on both sides.
SIZES = {
    "95m": (Model(layer_drop=0.0), Objective(), 120_000),
    "330m": (
        Model(
            layers=24,
            width=1024,
            ffn=4096,
            heads=16,
            norm="pre",
            input_dropout=0.0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            layer_drop=0.0,
            gradient_scale=1.0,
        ),
        Objective(head_width=128),
        122_880,
    ),
    "tiny": (Model(layers=2, width=64, ffn=128, heads=4, layer_drop=0.0), Objective(), 24_000),
}
CODES, BINS = (CodeColumn("codes", 8, 1024),), 336
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Reference(nn.Module):
    """transformers.HubertModel, and the loss as the authors write it: cosine similarity of every frame with
    every code."""

    def __init__(self, model: Model, objective: Objective):
        from transformers import HubertConfig, HubertModel

        from stages.pretrain.model.hubert import hubert_config

        super().__init__()
        self.hubert = HubertModel(HubertConfig(**hubert_config(model) | {"apply_spec_augment": True}))
        self.project = nn.Linear(model.width, 8 * objective.head_width)
        self.tables = nn.ParameterList(torch.rand(1024, objective.head_width) for _ in range(8))
        self.cqt, self.scale = nn.Linear(model.width, BINS), model.gradient_scale
        self.features = self.hubert.feature_extractor.register_forward_hook(self._keep)

    def _keep(self, _module, _inputs, features_BDT: Tensor) -> Tensor:
        scaled = features_BDT * self.scale + features_BDT.detach() * (1 - self.scale)
        self.penalty = scaled.float().square().mean()
        return scaled

    def forward(
        self, wave_BN: Tensor, mask_BT: Tensor, codes: dict[str, Tensor], cqt_BLF: Tensor
    ) -> dict[str, Tensor]:
        x_SD = self.hubert(wave_BN, mask_time_indices=mask_BT).last_hidden_state[mask_BT]
        codes_SK, loss = codes["codes"][mask_BT], 0.0
        for k, x_SE in enumerate(self.project(x_SD).chunk(8, -1)):
            similarity_CS = torch.cosine_similarity(
                x_SE.float()[None], self.tables[k].float()[:, None], dim=-1
            )
            loss = loss + F.cross_entropy(similarity_CS.T / 0.1, codes_SK[:, k], reduction="sum")
        cqt = (self.cqt(x_SD).float() - cqt_BLF[mask_BT]).square().mean()
        return {"loss": loss + len(x_SD) * (10 * self.penalty + cqt)}


def batch(model: Model, samples: int, clips: int, device: str) -> dict:
    """Noise with 58 % of the frames masked, in spans of 5 where they fall (recipe D)."""
    draw, frames = torch.Generator().manual_seed(0), model.frames(samples)
    starts_BT = torch.rand(clips, frames, generator=draw) < 0.16
    mask_BT = F.max_pool1d(starts_BT.float()[:, None], 5, 1, 2)[:, 0] > 0
    codes_BTK = torch.randint(1024, (clips, frames, 8), generator=draw)
    wave_BN = torch.randn(clips, samples, generator=draw) * 0.1
    cqt_BLF = torch.rand(clips, frames, BINS, generator=draw)
    return {
        "wave_BN": wave_BN.to(device),
        "mask_BT": mask_BT.to(device),
        "codes": {"codes": codes_BTK.to(device)},
        "cqt_BLF": cqt_BLF.to(device),
    }


def measure(asked: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    model, objective, samples = SIZES[asked.size]
    net = (
        (Mert(model, objective, CODES, BINS) if asked.side == "ours" else Reference(model, objective))
        .to(asked.device)
        .train()
    )
    if asked.compile:
        net.compile()
    inputs = batch(model, samples, asked.clips, asked.device)
    adam = torch.optim.AdamW(net.parameters(), 1e-4, (0.9, 0.98), 1e-6, 0.01, fused=True)
    cuda, frames, times, losses = asked.device == "cuda", int(inputs["mask_BT"].sum()), [], []
    for _ in range(asked.warm + asked.steps):
        begun = time.perf_counter()
        with torch.autocast(asked.device, DTYPES[asked.precision], enabled=asked.precision != "fp32"):
            loss = net(**inputs)["loss"] / frames
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        losses.append(loss.item())
        times.append(time.perf_counter() - begun)
    audio_s, step_s = asked.clips * samples / 24_000, sorted(times[asked.warm :])[asked.steps // 2]
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    flops = Mert.flops(net, samples) * asked.clips if asked.side == "ours" else None
    return {
        "audio_s_per_s": audio_s / step_s,
        "step_s": step_s,
        "peak_gib": peak / 2**30,
        "loss": [losses[0], losses[-1]],
        "flops_per_s": flops and flops / step_s,
    }


def arguments(argv: list[str] | None) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    top.add_argument("side", choices=("ours", "theirs"))
    top.add_argument("--size", choices=tuple(SIZES), default="95m")
    top.add_argument("--precision", choices=tuple(DTYPES), default="bf16")
    top.add_argument("--clips", type=int, default=4)
    top.add_argument("--steps", type=int, default=3)
    top.add_argument("--warm", type=int, default=1)
    top.add_argument("--device", default="cpu")
    top.add_argument("--compile", action="store_true")
    return top.parse_args(argv)


if __name__ == "__main__":
    json.dump(measure(arguments(None)), sys.stdout)
