"""A few dozen segments that span a corpus and its outliers, read from the tars to be looked at and listened
to."""

import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile

from pipeline.report.corpus import Corpus, quoted
from stages.shards import column
from stages.shards import record as records
from stages.shards.frames import decode_cqt
from stages.signal.rates import HOP_SAMPLES, RATE_HZ

SPREAD = 14  # segments that span the ordinary; the outliers come on top
SAMPLE = 20_000  # segments among which they are sought
EXCERPT_S = 30.0  # at most so much of a segment, from its start
FEATURES = ("lufs", "rms_db", "silence", "bandwidth_hz", "stereo", "entropy_bits", "tuning_cents", "cqt_mean")
OUTLIERS = {  # statistic → (what its least, what its greatest is called)
    "lufs": ("quietest", "loudest"),
    "silence": (None, "most silence"),
    "clipping": (None, "most clipping"),
    "bandwidth_hz": ("narrowest", None),
    "stereo": ("least alike channels", None),
    "entropy_bits": ("fewest codes", "most even codes"),
    "cqt_mean": ("least CQT", "greatest CQT"),
    "dc": (None, "greatest offset"),
    "length_s": ("shortest", "longest"),
}


@dataclass
class Example:
    """One chosen segment: its row of `named`, why it was chosen, and what its tars hold of the first 30 s.

    wave_N: float32 at 24 kHz; codes_TK: int64; cqt_TF: float32, the column's values; None where there are
    none."""

    row: dict[str, Any]
    why: list[str]
    wave_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    codes_TK: np.ndarray | None = None
    cqt_TF: np.ndarray | None = None
    log: bool = False  # cqt_TF is logarithmic


def choose_examples(corpus: Corpus) -> dict[str, list[str]]:
    """Keys and why: the extremes of each statistic, and segments spread evenly over all of them together."""
    asked = [
        (end, name, words)
        for name, pair in OUTLIERS.items()
        for end, words in zip(("min", "max"), pair, strict=True)
        if words
    ]
    ends = ", ".join(
        f"CASE WHEN min({name}) < max({name}) THEN arg_{end}(key, {name}) END AS k{i}"
        for i, (end, name, _) in enumerate(asked)
    )
    chosen: dict[str, list[str]] = {}
    for (_, _, words), key in zip(asked, corpus.one(f"SELECT {ends} FROM segments").values(), strict=True):
        if key is not None:
            chosen.setdefault(key, []).append(words)
    names = [name for name in FEATURES if name not in corpus.missing]
    fields = ", ".join(f"{name}::DOUBLE AS {name}" for name in names)
    found = corpus.db.execute(
        f"SELECT key, {fields} FROM segments ORDER BY hash(key) LIMIT {SAMPLE}"
    ).fetchnumpy()
    places = np.stack([ranks(np.ma.filled(found[name].astype(np.float64), np.nan)) for name in names], 1)
    for number in spread(places, SPREAD):
        chosen.setdefault(str(found["key"][number]), []).append("spread")
    return chosen


def ranks(values_S: np.ndarray) -> np.ndarray:
    """Each value's place among all, 0 … 1, equal values alike; one half where there is none (NaN)."""
    known = np.isfinite(values_S)
    places = np.full(len(values_S), 0.5)
    kinds, at = np.unique(values_S[known], return_inverse=True)
    places[known] = at / max(len(kinds) - 1, 1)
    return places


def spread(places_SF: np.ndarray, count: int) -> list[int]:
    """Rows far from each other: the one nearest the middle, then each time the one farthest from all
    chosen."""
    count = min(count, len(places_SF))
    if not count:
        return []
    chosen = [int(np.square(places_SF - 0.5).sum(1).argmin())]
    nearest = np.square(places_SF - places_SF[chosen[0]]).sum(1)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(places_SF - places_SF[chosen[-1]]).sum(1))
    return chosen


def read_examples(corpus: Corpus) -> list[Example]:
    """The chosen segments with what their tars hold, by path and start. One whose tar is gone is left out."""
    chosen = choose_examples(corpus)
    if not chosen:
        return []
    rows = corpus.rows(
        f"SELECT * FROM named WHERE key IN ({', '.join(map(quoted, chosen))}) ORDER BY path, start"
    )
    heard = []
    for row in rows:
        one = Example(row, chosen[row["key"]])
        try:
            _fill(corpus, one)
        except FileNotFoundError:
            continue
        heard.append(one)
    return heard


def _fill(corpus: Corpus, one: Example) -> None:
    current, row = corpus.registry.current, one.row
    frames = int(EXCERPT_S * RATE_HZ) // HOP_SAMPLES
    data = _member(corpus, current["audio"], row)
    one.wave_N = soundfile.read(io.BytesIO(data), dtype="float32")[0][: frames * HOP_SAMPLES]
    if "codes" in current and (data := _member(corpus, current["codes"], row)) is not None:
        one.codes_TK = np.load(io.BytesIO(data))[:frames].astype(np.int64)
    if "cqt" in current and (data := _member(corpus, current["cqt"], row)) is not None:
        record = json.loads(corpus.out.read(records.file(current["cqt"], row["shard"], "json")))
        one.cqt_TF = decode_cqt(np.load(io.BytesIO(data))[:frames], record["facts"])
        one.log = record["facts"].get("magnitude") == "log"


def _member(corpus: Corpus, name: str, row: dict[str, Any]) -> bytes | None:
    """The bytes of a segment's member of one column, by the shard's index; None when the column lacks the
    segment."""
    index = column.read_index(corpus.out, name, row["shard"])
    for place in index.to_pylist():
        if place["key"] == row["key"]:
            with corpus.out.open(records.file(name, row["shard"], "tar")) as tar:
                tar.seek(place["offset"])
                return tar.read(place["size"])
    return None
