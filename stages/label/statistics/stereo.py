"""The correlation of the first two channels of a source, before they become one.

The decoder's process adds up blocks of about five seconds; a segment takes its share of those it overlaps."""

from dataclasses import dataclass, field

import numpy as np


def products(planes_CN: np.ndarray) -> tuple[float, float, float]:
    """Σ left², Σ right² and Σ left·right of a block's first two channels."""
    left, right = planes_CN[:2]
    pairs = (left, left), (right, right), (left, right)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are refused later
        return tuple(float(np.einsum("i,i->", a, b)) for a, b in pairs)


@dataclass
class Stereo:
    """Blocks of one recording: begin in seconds → (end in seconds, Σ left², Σ right², Σ left·right)."""

    blocks: dict[float, tuple[float, ...]] = field(default_factory=dict)

    def add(self, begin_s: float, end_s: float, *sums: float) -> None:
        """A block that comes again, from a restarted decoder, replaces itself."""
        self.blocks[begin_s] = (end_s, *sums)

    def correlation(self, begin_s: float, end_s: float) -> float | None:
        """-1 … 1 over this stretch: 1 is mono, 0 unrelated, below 0 the downmix cancels; None for a mono
        source or a silent channel. Forgets blocks that end before the stretch does."""
        total = np.zeros(3)
        for first, (last, *sums) in list(self.blocks.items()):
            shared = min(last, end_s) - max(first, begin_s)
            if shared > 0:
                total += np.array(sums) * (shared / (last - first))
            if last <= end_s:
                del self.blocks[first]
        left, right, both = total
        scale = (left * right) ** 0.5
        return round(float(np.clip(both / scale, -1, 1)), 3) if scale > 0 else None
