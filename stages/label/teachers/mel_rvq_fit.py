"""Fitting Mel-RVQ: start each level from the data, train all together, leave no code dead.

T frames, D input width, K levels, C codes, E look-up width, B batch. All random numbers come from one
generator on the CPU, seeded by the recipe, a `MelRvq`."""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn

from stages.label.base import Wave
from stages.label.teachers.features import best
from stages.label.teachers.fitted_weights import LEVEL, levels
from stages.label.teachers.mel_rvq_frames import Frames, Ticker, read_stretches

COMMITMENT = 0.25  # MuQ
PEAK_RATE = 1e-3
WARMUP_STEPS = 50
INIT_ROUNDS = 10  # k-means rounds before training
INIT_FRAMES_PER_CODE = 64
LIFT = 4.0  # times the points' own size, see `_first_level`
REVIVE_FRAMES_PER_CODE = 64  # a code unused over so many frames per code is dead
SETTLE_ROUNDS = 4
HISTORY, HISTORY_FRAMES = 10, 8192  # held-out errors measured in training, on so many frames
CHUNK = 2048  # frames looked up at once


def fit_levels(
    recipe: Any, waves: Sequence[Wave], device: str, progress: Callable[[dict], None]
) -> tuple[dict, dict]:
    """The tensors of `MelRvq`, and the report of `MelRvq.fit`."""
    began = time.monotonic()
    generator = torch.Generator().manual_seed(recipe.seed)
    mels, heldout = read_stretches(recipe, recipe.features(device), waves, generator, progress)
    frames = Frames(mels, heldout, recipe.stack)
    leaves = _start(recipe, frames, generator, progress)
    history = _train(recipe, leaves, frames, generator, progress)
    tensors = {key: value.detach().clone() for key, value in _folded(leaves).items()}
    _settle(recipe, tensors, frames, progress)
    report = _report(tensors, frames) | {"history": history, "seconds": round(time.monotonic() - began, 1)}
    return tensors | {name: getattr(frames, name).reshape(1) for name in ("mean_db", "std_db")}, report


def _start(recipe: Any, frames: Frames, generator, progress: Callable) -> dict:
    """Trainable levels, each started from the residual of the levels before it."""
    rest_TD = frames.stacked(_picked(frames.fit_T, INIT_FRAMES_PER_CODE * recipe.codebook_size, generator))
    started, ticker = [], Ticker("init", recipe.codebooks, progress)
    for k in range(recipe.codebooks):
        level = _first_level(rest_TD, recipe.dim)
        z_TE = rest_TD @ _normed(level["in_v"], level["in_g"]).T + level["in_b"]
        codes_CE = _picked(z_TE, recipe.codebook_size, generator)
        for _ in range(INIT_ROUNDS):
            codes_CE = _kmeans_round(z_TE, codes_CE)
        level["codebook"] = codes_CE
        named_TE, out_w = codes_CE[_nearest(z_TE, codes_CE)[0]], _normed(level["out_v"], level["out_g"])
        rest_TD = rest_TD - named_TE @ out_w.T - level["out_b"]
        started.append(level)
        ticker.tick(k + 1, rest_TD.abs().mean())
    return {key: torch.stack([level[key] for level in started]) for key in level}


def _picked(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to `count` of the rows, at random."""
    return rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)]


def _first_level(rest_TD: Tensor, dim: int) -> dict:
    """Projections onto the residual's principal axes but one; the last coordinate is constant.

    Look-up is by direction alone: with a constant coordinate, points of different size differ in direction
    too, so training starts close to a Euclidean look-up. The axes keep their length, so errors of codes and
    of frames have one unit."""
    mean_D = rest_TD.mean(0)
    centred_TD = (rest_TD - mean_D).double()
    _, axes_DD = torch.linalg.eigh((centred_TD.T @ centred_TD).cpu() / len(rest_TD))
    axes_DE = axes_DD[:, -dim:].flip(1).to(rest_TD)
    size = ((rest_TD - mean_D) @ axes_DE[:, :-1]).square().sum(1).mean().sqrt().clamp_min(1e-4)
    in_g = torch.ones_like(axes_DE[0])
    in_g[-1] = 0.0
    in_b = -in_g * (mean_D @ axes_DE)
    in_b[-1] = LIFT * size
    out_w_DE = axes_DE * in_g
    out_g = out_w_DE.norm(dim=1)
    out_v = torch.where(out_g[:, None] > 0, out_w_DE, 1.0)
    out = {"out_v": out_v, "out_g": out_g, "out_b": mean_D}
    return {"in_v": axes_DE.T.contiguous(), "in_g": in_g, "in_b": in_b} | out


def _normed(v: Tensor, g: Tensor) -> Tensor:
    """Rows of `v` scaled to length `g`."""
    return v * (g / v.norm(dim=-1).clamp_min(1e-12)).unsqueeze(-1)


def _folded(leaves: dict) -> dict:
    """Plain weights instead of normalised ones."""
    weights = {f"{side}_w": _normed(leaves[f"{side}_v"], leaves[f"{side}_g"]) for side in ("in", "out")}
    return {key: (leaves | weights)[key] for key in LEVEL}


def _train(recipe: Any, leaves: dict, frames: Frames, generator, progress: Callable) -> list[dict]:
    """Adam over all levels together, in place; returns held-out errors on the way."""
    codebook = leaves["codebook"]
    adam = torch.optim.Adam([leaf.requires_grad_() for leaf in leaves.values()], lr=PEAK_RATE)
    used_KC = torch.zeros(codebook.shape[:2], dtype=torch.int64, device=codebook.device)
    every = -(-REVIVE_FRAMES_PER_CODE * recipe.codebook_size // recipe.batch)
    ticker, history, seen = Ticker("train", recipe.steps, progress), [], recipe.steps / HISTORY
    variance = _variance(frames)
    for step, x_BD in enumerate(islice(frames.batches(recipe.batch, generator), recipe.steps)):
        left = (recipe.steps - step) / recipe.steps
        adam.param_groups[0]["lr"] = PEAK_RATE * min((step + 1) / WARMUP_STEPS, left)
        loss, z_KBE, code_KB = _loss(_folded(leaves), x_BD)
        adam.zero_grad()
        loss.backward()
        adam.step()
        for k, code_B in enumerate(code_KB):
            used_KC[k] += torch.bincount(code_B, minlength=recipe.codebook_size)
        if (step + 1) % every == 0:
            if left > 0.2:  # a code revived later has no time to settle
                _revive(codebook, adam, used_KC == 0, z_KBE, generator)
            used_KC.zero_()
        ticker.tick(step + 1, loss.detach())
        if int((step + 1) / seen) > int(step / seen):
            history.append(
                {"step": step + 1, "heldout_error": _heldout_errors(_folded(leaves), frames, variance)}
            )
    return history


@torch.no_grad()
def _heldout_errors(tensors: dict, frames: Frames, variance: float) -> list[float]:
    """Of each level, on a part of the held-out frames."""
    held_TD, errors = frames.stacked(frames.heldout_T[:HISTORY_FRAMES]), []
    for codes_CE, in_w, in_b, out_w, out_b in levels(tensors):
        code_T, _ = _nearest(held_TD @ in_w.T + in_b, codes_CE)
        held_TD = held_TD - (codes_CE @ out_w.T + out_b)[code_T]
        errors.append(round(float(held_TD.square().mean()) / variance, 5))
    return errors


def _loss(weights: dict, x_BD: Tensor) -> tuple[Tensor, list, list]:
    """Scalar loss; per level z (B, E) and code (B,). Gradients pass the look-up straight through.

    The L1 error counts after every level: after the last alone, each level gets worse (measured)."""
    rest_BD, z_KBE, code_KB, loss = x_BD, [], [], torch.zeros((), device=x_BD.device)
    for codes_CE, in_w, in_b, out_w, out_b in levels(weights):
        z_BE = fn.linear(rest_BD, in_w, in_b)
        with torch.no_grad():
            code_B = best(z_BE @ fn.normalize(codes_CE, dim=1).T)
        q_BE = fn.embedding(code_B, codes_CE)  # its backward adds in a fixed order, unlike indexing's
        rest_BD = rest_BD - fn.linear(z_BE + (q_BE - z_BE).detach(), out_w, out_b)
        loss = loss + COMMITMENT * fn.mse_loss(z_BE, q_BE.detach()) + fn.mse_loss(q_BE, z_BE.detach())
        loss = loss + rest_BD.abs().mean()
        z_KBE.append(z_BE.detach())
        code_KB.append(code_B)
    return loss, z_KBE, code_KB


def _revive(codebook, adam, dead_KC: Tensor, z_KBE: list[Tensor], generator) -> None:
    """Dead codes move onto frames of this batch, without their momentum."""
    for k, (dead_C, z_BE) in enumerate(zip(dead_KC.cpu(), z_KBE, strict=True)):
        dead = dead_C.nonzero()[:, 0][: len(z_BE)].to(z_BE.device)
        codebook.data[k, dead] = _picked(z_BE, len(dead), generator)
        for moment in ("exp_avg", "exp_avg_sq"):
            adam.state[codebook][moment][k, dead] = 0


def _nearest(z_TE: Tensor, codes_CE: Tensor) -> tuple[Tensor, Tensor]:
    """Code of the nearest direction (T,), squared distance to it (T,)."""
    directions_EC = fn.normalize(codes_CE, dim=1).T.contiguous()
    code_T = torch.cat([best(part @ directions_EC) for part in z_TE.split(CHUNK)])
    return code_T, (z_TE - codes_CE[code_T]).square().sum(1)


def _kmeans_round(z_TE: Tensor, codes_CE: Tensor) -> Tensor:
    """Codes moved to the mean of their frames."""
    code_T, error_T = _nearest(z_TE, codes_CE)
    counts_C = torch.bincount(code_T, minlength=len(codes_CE))
    # Of sorted frames: adding by index has no fixed order on a GPU.
    sums_CE = torch.segment_reduce(z_TE[code_T.argsort(stable=True)], "sum", lengths=counts_C)
    moved_CE = torch.where(counts_C[:, None] > 0, sums_CE / counts_C.clamp_min(1)[:, None], codes_CE)
    return _reseeded(moved_CE, counts_C, z_TE, error_T)


def _reseeded(codes_CE, counts_C: Tensor, z_TE: Tensor, error_T: Tensor) -> Tensor:
    """A copy whose unused codes lie on the frames farthest from their codes."""
    unused = (counts_C == 0).nonzero()[:, 0][: len(z_TE)]
    codes_CE = codes_CE.clone()
    codes_CE[unused] = z_TE[error_T.topk(len(unused)).indices]
    return codes_CE


@torch.no_grad()
def _settle(recipe: Any, tensors: dict, frames: Frames, progress: Callable) -> None:
    """Level by level over every fitting frame: no code stays unused."""
    rest_TD, ticker = frames.stacked(frames.fit_T), Ticker("settle", recipe.codebooks, progress)
    for k, (codes_CE, in_w, in_b, out_w, out_b) in enumerate(levels(tensors)):
        z_TE = rest_TD @ in_w.T + in_b
        for _ in range(SETTLE_ROUNDS):
            code_T, error_T = _nearest(z_TE, codes_CE)
            counts_C = torch.bincount(code_T, minlength=recipe.codebook_size)
            if counts_C.all():
                break
            codes_CE = _reseeded(codes_CE, counts_C, z_TE, error_T)
        tensors["codebook"][k] = codes_CE
        rest_TD -= (codes_CE @ out_w.T + out_b)[_nearest(z_TE, codes_CE)[0]]
        ticker.tick(k + 1, rest_TD.abs().mean())


def _variance(frames: Frames) -> float:
    """Of held-out frames about the fit's mean: an error of 1 is a constant frame's."""
    mean_D = frames.stacked(frames.fit_T).mean(0)
    return float((frames.stacked(frames.heldout_T) - mean_D).square().mean()) or 1.0


@torch.no_grad()
def _report(tensors: dict, frames: Frames) -> dict:
    told = []
    rest_TD, held_TD = frames.stacked(frames.fit_T), frames.stacked(frames.heldout_T)
    variance = _variance(frames)
    for codes_CE, in_w, in_b, out_w, out_b in levels(tensors):
        decoded_CD = codes_CE @ out_w.T + out_b
        code_T, _ = _nearest(rest_TD @ in_w.T + in_b, codes_CE)
        rest_TD -= decoded_CD[code_T]
        held_TD = held_TD - decoded_CD[_nearest(held_TD @ in_w.T + in_b, codes_CE)[0]]
        level = usage(torch.bincount(code_T, minlength=len(codes_CE)))
        for name, left_TD in (("heldout", held_TD), ("fit", rest_TD)):
            level[f"{name}_error"] = float(left_TD.square().mean()) / variance
        told.append(level | {"heldout_l1_db": float(held_TD.abs().mean() * frames.std_db)})
    counts = {"fit_frames": len(frames.fit_T), "heldout_frames": len(frames.heldout_T)}
    return counts | {"mean_db": float(frames.mean_db), "std_db": float(frames.std_db), "levels": told}


def usage(counts_C: Tensor) -> dict:
    return {"used": int((counts_C > 0).sum()), "perplexity": round(perplexity(counts_C), 3)}


def perplexity(counts_C: Tensor) -> float:
    """exp of the entropy of code frequencies."""
    share = counts_C[counts_C > 0].double() / counts_C.sum()
    return float((-(share * share.log()).sum()).exp())
