"""Which input frames are replaced by the mask vector: the reference's spans, seeded per sample.

The reference (F data_utils.py, compute_mask_indices) draws int(prob·T/span + u) distinct starts in [0, T -
span), then trims every clip to the fewest of its batch. Here the count is what those spans cover on average.
Starts are taken in random order until it is reached; the last span may be cut short. S: places where one may
start."""

from functools import cache
from typing import Annotated

import numpy as np
from pydantic import Field

from stages.config import NUMBER, Count, remedy, settings
from stages.pretrain.data import counter_rng


@settings
class Masking:
    """YAML `masking:`. Values: M config/pretrain (mask_prob 0.8, mask_length 5), F (at least 2 spans)."""

    # frames in spans, counting overlaps twice, as a share of all frames; 0.8 masks about 58 % (D)
    prob: Annotated[float, Field(gt=0, le=5), NUMBER, remedy("the recipe has 0.8")] = 0.8
    span: Count = 5  # frames
    min_spans: Count = 2  # of a clip

    def masked_frames(self, frames: int) -> int:
        """Of every clip. ValueError when it is too short for its spans."""
        return _count(self, frames)

    def draw(self, keys_B: np.ndarray, frames: int) -> np.ndarray:
        """bool (B, T), True where masked; row b depends on keys_B[b] (uint64) and T alone."""
        count, starts = self.masked_frames(frames), frames - self.span
        ranks_BS = counter_rng.bits(keys_B[:, None], np.arange(starts))  # spans come in this order
        # rank of the first span over each frame
        first_BT = np.full((len(keys_B), frames), np.iinfo(np.uint64).max)
        for offset in range(self.span):
            covered = first_BT[:, offset : offset + starts]
            np.minimum(covered, ranks_BS, out=covered)
        last_B1 = np.partition(first_BT, count - 1, axis=1)[:, count - 1 : count]
        mask_BT, last_BT = first_BT < last_B1, first_BT == last_B1
        missing_B1 = count - mask_BT.sum(axis=1, keepdims=True)
        return mask_BT | (last_BT & (np.cumsum(last_BT, axis=1) <= missing_B1))


@cache
def _count(masking: Masking, frames: int) -> int:
    starts = frames - masking.span
    mean_spans = max(masking.min_spans, masking.prob * frames / masking.span)
    if starts < mean_spans + 1:
        raise ValueError(
            f"masking.span is {masking.span}, prob {masking.prob}, min_spans {masking.min_spans}: {frames} "
            f"frames are too few for {mean_spans:.1f} spans; use longer crops (data.crop_s) or a smaller prob"
        )
    whole = int(mean_spans)
    share = mean_spans - whole  # the reference draws whole + 1 spans so often
    fewer, more = (_covered(frames, masking.span, spans) for spans in (whole, whole + 1))
    return round((1 - share) * fewer + share * more)


def _covered(frames: int, span: int, spans: int) -> float:
    """Mean number of frames that `spans` distinct starts, uniform among frames - span, cover (D)."""
    starts = frames - span
    frame_T = np.arange(frames)
    # starts whose span holds the frame
    over_T = (np.minimum(frame_T, starts - 1) - np.maximum(frame_T - span + 1, 0) + 1).clip(0)
    missed_T = np.ones(frames)
    for taken in range(spans):  # hypergeometric: none of the drawn starts is one of these
        missed_T *= np.maximum(starts - taken - over_T, 0) / (starts - taken)
    return float((1 - missed_T).sum())
