"""A few dozen segments that span a corpus and its outliers, to be seen and heard."""

import contextlib
import io
import json
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import soundfile

from pipeline.report.corpus import Corpus, Row
from stages.shards import column
from stages.shards import record as records
from stages.shards.frames import decode_cqt
from stages.signal.rates import FRAMES_PER_S, HOP_SAMPLES

SPREAD = 14  # segments that span the corpus
SAMPLE = 20_000  # from which they are chosen
EXCERPT_S = 30  # of a segment, at most
FEATURES = ("lufs", "rms_db", "silence", "bandwidth_hz", "stereo", "entropy_bits", "tuning_cents", "cqt_mean")
OUTLIERS = {
    "quietest": ("min", "lufs"),
    "loudest": ("max", "lufs"),
    "most silence": ("max", "silence"),
    "most clipping": ("max", "clipping"),
    "narrowest": ("min", "bandwidth_hz"),
    "least alike channels": ("min", "stereo"),
    "fewest codes": ("min", "entropy_bits"),
    "most even codes": ("max", "entropy_bits"),
    "least CQT": ("min", "cqt_mean"),
    "greatest CQT": ("max", "cqt_mean"),
    "greatest offset": ("max", "dc"),
    "shortest": ("min", "length_s"),
    "longest": ("max", "length_s"),
}


@dataclass
class Example:
    """Its row of `named`, and the first 30 s: wave_N float32 at 24 kHz, codes_TK int64, cqt_TF float32, the
    column's values; None without that column."""

    row: Row
    why: list[str]
    wave_N: np.ndarray
    codes_TK: np.ndarray | None = None
    cqt_TF: np.ndarray | None = None
    log: bool = False  # cqt_TF is logarithmic


def choose_examples(corpus: Corpus) -> dict[str, list[str]]:
    """Key → why: extremes of each statistic, and segments spread evenly over all of them."""
    fields = (
        f'CASE WHEN min({name}) < max({name}) THEN arg_{end}(key, {name}) END AS "{word}"'
        for word, (end, name) in OUTLIERS.items()
    )
    chosen = defaultdict(list)
    for word, key in corpus.one(f"SELECT {', '.join(fields)} FROM segments").items():
        if key:
            chosen[key].append(word)
    names = [name for name in FEATURES if name not in corpus.missing]
    fields = ", ".join(f"{name}::DOUBLE AS {name}" for name in names)
    query = f"SELECT key, {fields} FROM segments ORDER BY hash(key) LIMIT {SAMPLE}"
    sample = corpus.db.execute(query).fetchnumpy()
    places = np.stack([ranks(np.ma.filled(sample[name].astype(np.float64), np.nan)) for name in names], 1)
    for number in spread(places, SPREAD):
        chosen[str(sample["key"][number])].append("spread")
    return chosen


def ranks(values_S: np.ndarray) -> np.ndarray:
    """Places, 0 … 1, equal values alike; one half for NaN."""
    from scipy.stats import rankdata

    places = rankdata(values_S, "dense", nan_policy="omit") - 1
    return np.nan_to_num(places / np.nanmax(places, initial=1), nan=0.5)


def spread(places_SF: np.ndarray, count: int) -> list[int]:
    """Far from each other: the row nearest the middle, then each time the farthest from all chosen."""
    chosen, nearest = [], np.inf
    distance = -np.square(places_SF - 0.5).sum(1)
    while len(chosen) < min(count, len(places_SF)) and (not chosen or distance.max() > 0):
        chosen.append(int(distance.argmax()))
        nearest = distance = np.minimum(nearest, np.square(places_SF - places_SF[chosen[-1]]).sum(1))
    return chosen


def read_examples(corpus: Corpus) -> list[Example]:
    """By path and start; without those whose tar is missing."""
    chosen, found = choose_examples(corpus), []
    rows = corpus.rows(
        "SELECT * FROM named WHERE key IN (SELECT unnest(?::VARCHAR[])) ORDER BY path, start", list(chosen)
    )
    for row in rows:
        with contextlib.suppress(FileNotFoundError):
            found.append(_read(corpus, row, chosen[row["key"]]))
    return found


def _read(corpus: Corpus, row: Row, why: list[str]) -> Example:
    current, frames = corpus.registry.current, EXCERPT_S * FRAMES_PER_S
    wave_N, _ = soundfile.read(_member(corpus, current["audio"], row), frames * HOP_SAMPLES, dtype="float32")
    one = Example(row, why, wave_N)
    if "codes" in current and (data := _member(corpus, current["codes"], row)):
        one.codes_TK = np.load(data)[:frames].astype(np.int64)
    if "cqt" in current and (data := _member(corpus, current["cqt"], row)):
        facts = json.loads(corpus.out.read(records.file(current["cqt"], row["shard"], "json")))["facts"]
        one.cqt_TF = decode_cqt(np.load(data)[:frames], facts)
        one.log = facts.get("magnitude") == "log"
    return one


def _member(corpus: Corpus, name: str, row: Row) -> io.BytesIO | None:
    """None when the column lacks the segment."""
    for place in column.read_index(corpus.out, name, row["shard"]).to_pylist():
        if place["key"] == row["key"]:
            with corpus.out.open(records.file(name, row["shard"], "tar")) as tar:
                tar.seek(place["offset"])
                return io.BytesIO(tar.read(place["size"]))
    return None
