"""What a probe's outputs are worth. N items, C outputs.

Scores that are a mean over items are given item by item, so that a resampling of groups costs nothing; ROC,
AP and R² are computed anew for each resampling."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

KEYS = tuple(
    f"{tonic} {mode}"
    for mode in ("major", "minor")
    for tonic in ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
)
SPELLINGS = {
    "Db": "C#",
    "D#": "Eb",
    "Gb": "F#",
    "G#": "Ab",
    "A#": "Bb",
    "Cb": "B",
    "B#": "C",
    "Fb": "E",
    "E#": "F",
}
BEAT_WINDOW_S = 0.07  # mir_eval's, and the field's
BEAT_RATE_HZ = 50.0  # at which beats are placed
TIGHTNESS = 100.0  # of beats' distances, librosa's default
TEMPO_OCTAVES = 1.0  # deviation of tempi from 120 beats a minute (Ellis: 0.9 to 1.4)


@dataclass(frozen=True)
class Metric:
    name: str  # as in published.csv
    by_item: bool
    # targets and outputs of some items → (N,) by item, or one figure
    of: Callable[[np.ndarray, np.ndarray], np.ndarray | float]


def accuracy(target_N: np.ndarray, output_NC: np.ndarray) -> np.ndarray:
    return (output_NC.argmax(1) == target_N).astype(np.float64)


def key_score(target_N: np.ndarray, output_NC: np.ndarray) -> np.ndarray:
    """MIREX's weights: 1 the same key, 0.5 a fifth off, 0.3 the relative one, 0.2 the parallel one."""
    from mir_eval.key import weighted_score

    pairs = zip(target_N, output_NC.argmax(1), strict=True)
    return np.array([weighted_score(KEYS[a], KEYS[b]) for a, b in pairs])


def roc_auc(target_NC: np.ndarray, output_NC: np.ndarray) -> float:
    """Mean over the tags that occur and do not always occur."""
    some = (target_NC.sum(0) > 0) & (target_NC.sum(0) < len(target_NC))
    return float(roc_auc_score(target_NC[:, some], output_NC[:, some], average="macro"))


def average_precision(target_NC: np.ndarray, output_NC: np.ndarray) -> float:
    some = target_NC.sum(0) > 0
    return float(average_precision_score(target_NC[:, some], output_NC[:, some], average="macro"))


def r2(target_NC: np.ndarray, output_NC: np.ndarray) -> float:
    """Mean over the numbers."""
    return float(r2_score(target_NC, output_NC))


def metrics_of(kind: str, names: tuple[str, ...] = ()) -> tuple[Metric, ...]:
    """The first decides on validation. `names`: of the numbers of a task."""
    if kind == "numbers":
        columns = [partial(_column_r2, column) for column in range(len(names))]
        each = [Metric(f"r2_{name}", False, of) for name, of in zip(names, columns, strict=True)]
        return (Metric("r2", False, r2), *each)
    return METRICS[kind]


def _column_r2(column: int, target_NC: np.ndarray, output_NC: np.ndarray) -> float:
    return r2(target_NC[:, column], output_NC[:, column])


METRICS = {
    "class": (Metric("accuracy", True, accuracy),),
    "key": (Metric("weighted_accuracy", True, key_score), Metric("accuracy", True, accuracy)),
    "tags": (Metric("roc_auc", False, roc_auc), Metric("average_precision", False, average_precision)),
    "beats": (Metric("f1", True, lambda *_: np.zeros(0)),),  # see `beat_f`
}


def key_number(text: str) -> int:
    """ValueError for what is no key. `C# minor`, `Db:minor`, `Bbm`, `A` (major)."""
    plain = text.replace(":", " ").replace("♯", "#").replace("♭", "b").strip()
    tonic, _, mode = plain.partition(" ")
    if not mode and len(tonic) > 1 and tonic.endswith("m"):
        tonic, mode = tonic[:-1], "minor"
    mode = {"": "major", "maj": "major", "min": "minor", "m": "minor"}.get(mode.lower(), mode.lower())
    tonic = tonic[:1].upper() + tonic[1:]
    key = f"{SPELLINGS.get(tonic, tonic)} {mode}"
    if key not in KEYS:
        raise ValueError(f"target {text!r} is no key: expected one such as C# minor")
    return KEYS.index(key)


def beat_times(output_T: np.ndarray, frame_s: float) -> np.ndarray:
    """Seconds of beats by dynamic programming (Ellis 2007, doi 10.1080/09298210701653344), where MARBLE has a
    hidden Markov model: high output, at distances near one period of the whole file."""
    count = int(len(output_T) * frame_s * BEAT_RATE_HZ)
    centre_T = (np.arange(len(output_T)) + 0.5) * frame_s
    x_T = np.interp((np.arange(count) + 0.5) / BEAT_RATE_HZ, centre_T, output_T)
    x_T = (x_T - x_T.mean()) / max(x_T.std(), 1e-6)
    period = _period(x_T)
    back = np.arange(-round(2 * period), -round(period / 2) + 1)
    cost = -TIGHTNESS * np.log(-back / period) ** 2
    score_T, before_T = x_T.copy(), np.full(count, -1)
    for t in range(count):
        place = t + back[max(0, -back[0] - t) :]
        if len(place):
            found = score_T[place] + cost[-len(place) :]
            best = found.argmax()
            if found[best] > 0:
                score_T[t], before_T[t] = x_T[t] + found[best], place[best]
    end = max(0, count - round(period))
    at, times = end + int(score_T[end:].argmax()), []
    while at >= 0:
        times.append((at + 0.5) / BEAT_RATE_HZ)
        at = before_T[at]
    return np.array(times[::-1])


def _period(x_T: np.ndarray) -> float:
    """Of BEAT_RATE_HZ frames: the strongest autocorrelation, weighted by nearness to 120 beats a minute."""
    lags = np.arange(round(BEAT_RATE_HZ * 0.25), round(BEAT_RATE_HZ * 1.5))
    power = np.abs(np.fft.rfft(x_T, 2 * len(x_T))) ** 2
    correlation = np.fft.irfft(power)[lags] if len(x_T) > lags[-1] else np.ones(len(lags))
    near = np.exp(-0.5 * (np.log2(lags / BEAT_RATE_HZ / 0.5) / TEMPO_OCTAVES) ** 2)
    return float(lags[(correlation * near).argmax()])


def beat_f(true_s: np.ndarray, output_T: np.ndarray, frame_s: float) -> float:
    """F-measure of mir_eval.beat, whose first five seconds do not count."""
    from mir_eval.beat import f_measure, trim_beats

    found_s = trim_beats(beat_times(output_T, frame_s))
    return float(f_measure(trim_beats(true_s), found_s, BEAT_WINDOW_S)) if len(found_s) else 0.0


def interval(
    groups: list[str], score: Callable[[np.ndarray], float], resamplings: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 %: `score` of the item numbers of groups that are drawn with replacement."""
    names = sorted(set(groups))
    members = {name: np.flatnonzero(np.array(groups) == name) for name in names}
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamplings):
        drawn = random.integers(0, len(names), len(names))
        found.append(score(np.concatenate([members[names[i]] for i in drawn])))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)
