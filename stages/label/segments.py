"""Frames of an uninterrupted recording, cut to its segments: shared by every label column."""

from collections.abc import Iterable, Iterator

import numpy as np

from stages.label.base import HOP_SAMPLES


def cut(blocks: Iterable[np.ndarray], segments: list[dict]) -> Iterator[tuple[dict, np.ndarray]]:
    """Cut consecutive blocks (t, C) of a recording's frames at its segments' borders.

    Yields (segment, frames (T, C)) with T = floor(samples / 320). Segments start on multiples of 320
    samples, so no frame is shared. Holds one segment; raises RuntimeError when frames run out early.
    """
    source = iter(blocks)
    held: list[np.ndarray] = []
    have = 0
    for segment in segments:
        count = segment["samples"] // HOP_SAMPLES
        while have < count:
            block = next(source, None)
            if block is None:
                raise RuntimeError(
                    f"{segment['recording']}: the teacher gave {have} frames, {count} are needed"
                )
            held.append(block)
            have += len(block)
        joined = held[0] if len(held) == 1 else np.concatenate(held)
        yield segment, joined[:count]
        held, have = [joined[count:]], have - count


def identity(segment: dict) -> dict:
    """The columns of a segment's row that every column of the shard shares."""
    return {name: segment[name] for name in ("recording", "start", "samples", "frames")}
