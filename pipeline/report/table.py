"""A table of plain values, for the terminal and the page: a cell's text, and the value a page sorts by."""

import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

BARS = "▁▂▃▄▅▆▇█"
BAR_WIDTH, METER_WIDTH = 40, 20  # characters
MISSING = "–"


class Column(NamedTuple):
    """kind: text, path (one or a list), count, number, share (0 … 1), bytes, duration (seconds), meter
    (0 … 1), histogram (counts), figures (text aligned like numbers). A count may be a pair, (n, of)."""

    head: str
    kind: str = "text"
    digits: int = 2
    unit: str = ""  # follows every value

    @property
    def is_number(self) -> bool:
        return self.kind not in ("text", "path", "histogram")

    @property
    def is_right(self) -> bool:
        return self.is_number and self.kind != "meter"

    def sort_value(self, value: Any) -> float | str:
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
            case "meter":
                text = ("█" * round(value * METER_WIDTH)).ljust(METER_WIDTH, "░")
            case kind:
                text = {"bytes": size, "duration": span, "histogram": bar}.get(kind, str)(value)
        return f"{text} {self.unit}" if self.unit else text


def _columns(kind: str, own: str = "", digits: int = 2, **heads: str) -> dict[str, Column]:
    """By key in a row; `own`: keys that are their own heads."""
    return {key: Column(heads.get(key, key), kind, digits) for key in (*own.split(), *heads)}


COLUMNS = {
    **_columns("text", "stage reason shard host codec unit run", name="column", title="", key="segment"),
    "range": Column("from – to"),
    **_columns("path", "examples", path="file"),
    **_columns("count", "shards retries hosts files level dead channels recordings segments rejected"),
    **_columns("count", validation="for validation", used_of="used", progress="update", restarted="restarts"),
    "rate_hz": Column("rate", "count", unit="Hz"),
    **_columns("bytes", bytes="size", bytes_per_hour="size per hour"),
    **_columns("duration", wall_s="wall", busy_s="CPU", decoding_s="decoding", seconds="length"),
    **_columns("duration", at_s="at", elapsed_s="time"),
    **_columns("number", "hours stereo silence loss", entropy_bits="code bits", cqt_mean="CQT mean"),
    **_columns("number", frames_per_s="frames/s", p5="5 %", p50="median", p95="95 %"),
    **_columns("number", held_out_loss="held-out loss"),
    **_columns("number", "perplexity skipped", 0, times_real_time="× real time"),
    **_columns("number", digits=0, bandwidth_hz="bandwidth Hz", tuning_cents="tuning cents"),
    **_columns("number", digits=1, times_median="× the median", length_s="s", audio_s_per_s="audio-s/s"),
    **_columns("number", digits=1, lufs="LUFS", rms_db="RMS dBFS", peak_db="peak dBFS"),
    **_columns("number", "utilisation", 3, cqt_error="CQT error", data_wait="data wait"),
    **_columns("number", digits=3, accuracy_0="accuracy 0", gain_0="gain_over_unigram 0"),
    "clipping": Column("clipping", "number", 5),
    "counts": Column("distribution", "histogram"),
    "share": Column("", "meter"),
    "of_size": Column("of its size", "share", 0),
    "top_code": Column("most frequent", "figures"),
    "top_share": Column("its share", "share", 1),
}


def chosen(keys: str) -> dict[str, Column]:
    return {key: COLUMNS[key] for key in keys.split()}


class Table(NamedTuple):
    title: str
    columns: dict[Any, Column]  # by the key of their values in a row
    rows: Sequence[Any]
    note: str = ""
    is_warning: bool = False  # the note


def _parts(values: list, count: int) -> list[list]:
    return [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]


def bar(counts: list[int], width: int = BAR_WIDTH) -> str:
    """A count above zero is never blank."""
    joined = list(map(sum, _parts(counts, width)))
    top = max(joined) or 1
    return "".join((" " + BARS)[math.ceil(n / top * len(BARS))] for n in joined)


def spark(values: list[float]) -> str:
    means = [sum(part) / len(part) for part in _parts(values, min(BAR_WIDTH, len(values)))]
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
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 1)):
        if value < 1024:
            return f"{value:.{digits}f} {unit}"
        value /= 1024
    return f"{value:,.2f} TiB"


def span(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60:,}:{minutes % 60:02} h"


def short(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(PurePosixPath(path).parts[-2:])
