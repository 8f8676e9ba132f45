"""What is probed: an encoder of ours or of `transformers`, and plain spectra beside it.

B clips, N samples, T frames, L layers, D values of a frame."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.fft import dct
from torch import Tensor

from stages.evaluate.run import open_backbone
from stages.pretrain.model.backbone import Backbone
from stages.signal.chroma import chroma_filters
from stages.signal.cqt import ConstantQ
from stages.signal.cqt_tables import MERT
from stages.signal.mel import LogMel
from stages.signal.rates import HOP_SAMPLES, RATE_HZ
from stages.signal.tables import table_cache

CHROMA_FFT = 4096  # samples
MFCCS = 20  # librosa's default number, of 128 mels
LOG_FLOOR = 1e-3  # of constant-Q magnitudes, as the training target has it
HUBERT_HZ = 16_000
NORMALISE_EPS = 1e-7  # transformers' Wav2Vec2FeatureExtractor
SPECTRA = ("log-mel", "CQT", "chroma", "MFCC")
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Encoder:
    name: str
    identity: str  # of its weights and choices: equal ones give equal features
    layers: tuple[str, ...]
    hop_samples: int  # of one frame
    least_samples: int  # of one frame: a shorter clip is padded with silence
    hidden: Callable[[Tensor], Tensor]  # float32 (B, N) → float32 (B, L, T, D), frame t covers hop·t on
    rate_hz: int = RATE_HZ  # of the audio


def spectrum(name: str) -> Encoder:
    """One of SPECTRA, at 75 Hz: log-mel of 128 bands, the logarithm of the constant-Q transform that is the
    musical teacher, 12 chroma of power, 20 MFCC."""
    if name == "CQT":
        transform = ConstantQ(MERT, table_cache())

        def frames(wave_BN: Tensor, count: int) -> Tensor:
            return (transform.frames(wave_BN, 0, count) + LOG_FLOOR).log()
    else:
        filters = chroma_filters(RATE_HZ, CHROMA_FFT) if name == "chroma" else None
        made = LogMel(RATE_HZ, HOP_SAMPLES, n_fft=CHROMA_FFT if name == "chroma" else 2048, filters=filters)

        def frames(wave_BN: Tensor, count: int) -> Tensor:
            found_BTF = made(wave_BN, 0, count)
            if name == "chroma":
                power_BTF = 10 ** (found_BTF / 10)
                return power_BTF / power_BTF.amax(2, keepdim=True).clamp_min(1e-9)
            if name == "MFCC":
                return torch.from_numpy(dct(found_BTF.numpy(), norm="ortho")[..., :MFCCS])
            return found_BTF

    def hidden(wave_BN: Tensor) -> Tensor:
        return frames(wave_BN, wave_BN.shape[1] // HOP_SAMPLES)[:, None]

    return Encoder(name, f"{name}-1", (name,), HOP_SAMPLES, HOP_SAMPLES, hidden)


@dataclass(frozen=True)
class Heard:
    """How an encoder wants its audio."""

    rate_hz: int = RATE_HZ
    normalised: bool = False  # each window to mean 0 and deviation 1, as `do_normalize` says


def ours(name: str, net: Backbone, device: str, heard: Heard = Heard()) -> Encoder:
    """Layer 0 is the input embedding."""
    net, model = net.eval().to(device), net.model

    @torch.no_grad()
    def hidden(wave_BN: Tensor) -> Tensor:
        if heard.normalised:
            wave_BN = wave_BN - wave_BN.mean(1, keepdim=True)
            wave_BN = wave_BN / (wave_BN.var(1, correction=0, keepdim=True) + NORMALISE_EPS).sqrt()
        return torch.stack(net.hidden(wave_BN.to(device)), 1).float().cpu()

    layers = tuple(str(layer) for layer in range(model.layers + 1))
    told = [asdict(model)] if heard == Heard() else [asdict(model), asdict(heard)]
    identity = hashlib.sha256("".join(json.dumps(part, sort_keys=True) for part in told).encode())
    for key, value in sorted(net.state_dict().items()):
        identity.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    own = (model.hop_samples, model.samples(1))
    return Encoder(name, identity.hexdigest()[:16], layers, *own, hidden, heard.rate_hz)


def untrained(net: Backbone, seed: int, device: str, heard: Heard = Heard()) -> Encoder:
    """The same model with the values it had before training, but for the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ours(UNTRAINED, Backbone(net.model), device, heard)


def opened(place: str | Path, checkpoint: str, device: str, name: str | None = None) -> tuple[Encoder, ...]:
    """The model of a RUN or a folder, then the same untrained. Raises ValueError."""
    net = open_backbone(place, checkpoint)
    shown = name or Path(place).resolve().name
    heard = heard_by(Path(place))
    return ours(shown, net, device, heard), untrained(net, 0, device, heard)


def heard_by(place: Path) -> Heard:
    """By the folder's preprocessor_config.json, else by config.json's `sample_rate` (MERT's; HuBERT has none,
    and hears 16 kHz). A RUN hears 24 kHz."""
    if (place / "config.yaml").exists():
        return Heard()
    known = {}
    for name in ("config.json", "preprocessor_config.json"):
        if (place / name).exists():
            known |= json.loads((place / name).read_text())
    rate_hz = known.get("sampling_rate") or known.get("sample_rate")
    return Heard(int(rate_hz or HUBERT_HZ), bool(known.get("do_normalize", False)))
