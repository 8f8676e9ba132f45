"""EnCodec weights for tests: the package's own model, untrained, with codebooks fitted to real music.

The published weights cannot be fetched in a test. With `pretrained=False` every codebook is zero and
one token comes out; and the music drowns: after fifteen layers of constant biases it moves the output
by 4 %, so float32 rounding alone would change tokens. So each layer is first centred and scaled on
the quickstart's music, then the first eight levels are fitted by k-means to what the encoder gives;
tokens then vary as with real weights, and a shifted frame is noticed.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from stages.label.teachers.encodec_package import package
from stages.label.teachers.features import threads_set
from tests.excerpt import PIECES, RATE_HZ, excerpt

FITTED = 8  # levels; the other 24 are copies of the last
CODES = 1024


def load_model(path: Path):
    """The package's model at 6 kbps with the weights of `path`: the reference."""
    model = package().EncodecModel.encodec_model_24khz(pretrained=False)
    model.load_state_dict(torch.load(path, weights_only=True))
    model.set_target_bandwidth(6.0)
    return model


def cached_weights() -> Path:
    """Weights of seed 0, made once for the text that makes them and torch's version, kept in the temporary
    folder."""
    texts = [Path(__file__).with_name(name).read_bytes() for name in ("encodec_weights.py", "excerpt.py")]
    text = b"".join([*texts, torch.__version__.encode()])
    path = Path(tempfile.gettempdir()) / f"encodec-test-{hashlib.sha256(text).hexdigest()[:12]}.pt"
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        make_weights(part).replace(path)
    return path


def make_weights(path: Path, seed: int = 0, seconds_per_file: float = 10.0) -> Path:
    """Write a state dict of the official layout to `path`, by torch.save; about 15 s on one core."""
    with torch.random.fork_rng(), threads_set(1):  # their number shows in the last bits
        torch.manual_seed(seed)
        model = package().EncodecModel.encodec_model_24khz(pretrained=False)
        waves = [excerpt(n, length_s=seconds_per_file) for n in range(len(PIECES))]
        with torch.no_grad():
            _condition(model.encoder, torch.tensor(np.stack([wave[: 2 * RATE_HZ] for wave in waves])))
            frames = [model.encoder(torch.tensor(wave)[None, None])[0].t() for wave in waves]
        rest = torch.cat(frames)
        for level, layer in enumerate(model.quantizer.vq.layers):
            book = layer._codebook
            if level < FITTED:
                centres = _k_means(rest)
                rest = rest - centres[_nearest(rest, centres)]
            for buffer in (book.embed, book.embed_avg):
                buffer.copy_(centres)
            book.inited.fill_(1)
    torch.save(model.state_dict(), path)
    return path


def _condition(encoder: torch.nn.Module, waves_BN: torch.Tensor) -> None:
    """Give every convolution outputs of mean 0 per channel and standard deviation 1, in one pass."""

    def rescale(layer: torch.nn.Module, _, out_BCL: torch.Tensor) -> torch.Tensor:
        mean, spread = out_BCL.mean((0, 2)), out_BCL.std()
        layer.conv.bias.sub_(mean).div_(spread)
        layer.conv.weight_g.div_(spread)
        return (out_BCL - mean[:, None]) / spread

    convolutions = [part for part in encoder.modules() if type(part).__name__ == "NormConv1d"]
    hooks = [part.register_forward_hook(rescale) for part in convolutions]
    encoder(waves_BN[:, None])
    for hook in hooks:
        hook.remove()


def _k_means(x_TD: torch.Tensor, rounds: int = 4) -> torch.Tensor:
    """Centres (CODES, D), a little off the means: so no two are equal (a choice left to rounding), and
    music that loops leaves something for the next level."""
    centres = x_TD[torch.randperm(len(x_TD))[:CODES]]
    for _ in range(rounds):
        nearest = _nearest(x_TD, centres)
        counts = torch.bincount(nearest, minlength=CODES)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x_TD)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return centres + 0.2 * x_TD.std() * torch.randn(centres.shape)


def _nearest(x_TD: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return torch.addmm(centres.square().sum(1), x_TD, centres.t(), alpha=-2).argmin(1)
