"""One table of a report: columns with a kind and a unit, rows of plain values.

The terminal and the page both draw it: a cell's text is written here, a page sorts by the value itself.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

BARS = "▁▂▃▄▅▆▇█"
BAR_WIDTH, METER_WIDTH = 40, 20  # characters
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """kind: text, path (one or a list), count, number, share (0 … 1), bytes, duration (seconds), meter
    (0 … 1), histogram (counts), figures (text aligned like numbers). A count may be a pair, (n, of)."""

    head: str
    kind: str = "text"
    digits: int = 2
    unit: str = ""  # follows every value

    @property
    def is_number(self) -> bool:
        """Whether a page orders rows by the number rather than by the text."""
        return self.kind not in ("text", "path", "histogram")

    @property
    def is_right(self) -> bool:
        return self.is_number and self.kind != "meter"

    def sort_value(self, value: Any) -> float | str:
        """The value that rows are ordered by; an empty text when there is none."""
        if isinstance(value, tuple | list):
            return ", ".join(value) if self.kind == "path" else value[0]
        return "" if value is None else value

    def text(self, value: Any) -> str:
        if value is None:
            return MISSING
        match self.kind:
            case "path":
                text = ", ".join(map(short, [value] if isinstance(value, str) else value))
            case "count":
                text = " / ".join(map("{:,}".format, value if isinstance(value, tuple) else [value]))
            case "number":
                text = number(value, self.digits)
            case "share":
                text = f"{value:.{self.digits}%}"
            case "bytes":
                text = size(value)
            case "duration":
                text = span(value)
            case "meter":
                text = ("█" * round(value * METER_WIDTH)).ljust(METER_WIDTH, "░")
            case "histogram":
                text = bar(value)
            case _:
                text = str(value)
        return f"{text} {self.unit}" if self.unit else text


@dataclass(frozen=True)
class Table:
    title: str
    columns: dict[Any, Column]  # by the key of their values in a row
    rows: Sequence[Any]
    note: str = ""
    is_warning: bool = False  # the note


def bar(counts: Iterable[int], width: int = BAR_WIDTH) -> str:
    """A histogram of any length as `width` characters; a count above zero is never blank."""
    counts = list(counts)
    joined = [sum(counts[i * len(counts) // width : (i + 1) * len(counts) // width]) for i in range(width)]
    top = max(joined) or 1
    return "".join(" " if not n else BARS[max(0, math.ceil(n / top * len(BARS)) - 1)] for n in joined)


def spark(values: list[float], width: int = BAR_WIDTH) -> str:
    """A curve as `width` characters, from its least to its greatest value."""
    width = min(width, len(values))
    parts = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / ((high - low) or 1) * (len(BARS) - 1))] for mean in means)


def number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return MISSING
    if value and abs(value) < 10**-digits / 2 and digits:
        return f"{value:.1g}"
    return f"{value:,.{digits}f}"


def size(value: float | None) -> str:
    if value is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.2f} TiB"


def span(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{minutes}:{int(seconds) % 60:02} min" if not hours else f"{hours:,}:{minutes % 60:02} h"


def short(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(PurePosixPath(path).parts[-2:])
