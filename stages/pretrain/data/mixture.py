"""In-batch mixture: pieces of other clips are added to the model's input; labels stay the clean clip's.
Donors are other places of the sample's own global batch, so that nothing else changes them. P pieces."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from stages.config import Count, NotNegative, Pair, Positive, Share, check, remedy, settings
from stages.pretrain.data import counter_rng
from stages.signal.rates import RATE_HZ

_SECONDS = "expected [shortest, longest], in seconds above 0"


@settings
class Mixture:
    """YAML `mixture:`. Values: M (in-batch noise mixture), 1 to 3 pieces of 0.5 to 1.0 s for 95M, to 1.5 s
    for 330M."""

    # of mixing; 0: off (the original's test is inverted, harmless at 0.5 only)
    prob: Share = 0.5
    min_pieces: Annotated[Count, remedy("prob 0 turns mixture off")] = 1  # of a clip
    max_pieces: Annotated[Count, Field(le=64)] = 3  # of a clip
    piece_s: Annotated[Pair[Positive], remedy(_SECONDS)] = (0.5, 1.0)  # shortest, longest
    gain: NotNegative = 1.0  # of a piece

    def __post_init__(self):
        most = f"expected min_pieces ({self.min_pieces}) to 64"
        check(self.min_pieces <= self.max_pieces, self, "max_pieces", most)
        check(self.piece_s[0] <= self.piece_s[1], self, "piece_s", _SECONDS)

    def draw(self, keys_B: np.ndarray, places_B: np.ndarray, global_batch: int, samples: int) -> "Pieces":
        """For clips of `samples` samples at these places of one global batch; of one clip: none. keys_B:
        uint64."""
        limit, fewest, below = self.max_pieces, self.min_pieces, counter_rng.below
        mixed_B = counter_rng.uniform(keys_B, 0) < self.prob
        count_B = fewest + below(limit - fewest + 1, counter_rng.uniform(keys_B, 1))
        wanted_BP = (np.arange(limit) < count_B[:, None]) & mixed_B[:, None] & (global_batch > 1)
        counters = 2 + np.arange(4 * limit).reshape(limit, 4)
        share_4BP = np.moveaxis(counter_rng.uniform(keys_B[:, None, None], counters), 2, 0)
        low, high = (min(round(s * RATE_HZ), samples) for s in self.piece_s)
        length_BP = low + below(high - low + 1, share_4BP[0])
        donor_BP = below(max(1, global_batch - 1), share_4BP[1])
        donor_BP = donor_BP + (donor_BP >= places_B[:, None])  # any place but one's own
        from_BP, to_BP = below(samples - length_BP + 1, share_4BP[2:])
        clip, piece = np.nonzero(wanted_BP)
        return Pieces(clip, *(values[clip, piece] for values in (donor_BP, from_BP, to_BP, length_BP)))


@dataclass(frozen=True)
class Pieces:
    """int64 (P,) each: `length` samples of the clean clip at place `donor`, from `start`, are added to `clip`
    at `to`."""

    clip: np.ndarray  # row of the draw
    donor: np.ndarray  # place in the global batch
    start: np.ndarray
    to: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.clip)
