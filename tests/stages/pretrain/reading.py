"""Readers of crops over a small corpus."""

import numpy as np

from stages.pretrain.data.crop_index import CropIndex
from stages.pretrain.data.crops import Reader
from stages.pretrain.data.index import Pinned
from stages.pretrain.data.masking import Masking
from stages.pretrain.data.mixture import Mixture
from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State

FRAMES, G = 48, 6  # model frames of a crop, samples of a global batch


def reading(data: Data, mixture: Mixture | None = None) -> Reader:
    return Reader(pin(data), data, Masking(), mixture or Mixture(prob=0.0), FRAMES)


def sample_ids(pinned: Pinned, data: Data, state: State) -> list[str]:
    """KEY+START of every sample of the state's global batch in order, START in samples of the segment, as if
    none had to be replaced."""
    state = state.settled(pinned.samples_per_epoch)
    crops = CropIndex(pinned, data).crops(state, np.arange(state.global_batch))
    return [f"{pinned.key(row)}+{start}" for row, start in zip(crops.row, crops.start, strict=True)]


def state(reader: Reader, consumed: int = 0) -> State:
    return State(reader.pinned.fingerprint, 3, G, 0, consumed)
