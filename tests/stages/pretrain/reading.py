"""Readers of crops over a small corpus."""

from stages.pretrain.data.crops import Reader
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State

FRAMES, G = 48, 6  # model frames of a crop, samples of a global batch


def reading(data: Data, mixture: Mixture | None = None) -> Reader:
    return Reader(pin(data), data, Masking(), mixture or Mixture(prob=0.0), FRAMES)


def state(reader: Reader, consumed: int = 0) -> State:
    return State(reader.pinned.fingerprint, 3, G, 0, consumed)
