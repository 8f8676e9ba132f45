"""Throughput of a labelling run. Letters: J jobs (a shard at a stage), E edges of the time axis."""

import numpy as np

from pipeline.report.corpus import Corpus, Row
from stages.signal.rates import RATE_HZ

POINTS = 160
IDLE_SHARE = 0.02  # of the whole time: a longer pause without any work is cut out of the axis


def timeline(corpus: Corpus) -> Row | None:
    """Seconds of work since the first shard, pauses cut out; audio-s/s by stage, and decoding by host."""
    found = corpus.db.execute(
        "SELECT stage, coalesce(host, '?') AS host, started, wall_s, samples FROM shards "
        "WHERE started IS NOT NULL AND wall_s > 0 ORDER BY started"
    ).fetchnumpy()
    if not len(found["started"]):
        return None
    begin_J, cuts = without_pauses(found["started"], found["wall_s"])
    end_J = begin_J + found["wall_s"]
    edges_E = np.linspace(0, end_J.max(), POINTS + 1)
    rate_J = found["samples"] / RATE_HZ / found["wall_s"]

    def series(chosen: np.ndarray) -> list[float]:
        return throughput(begin_J[chosen], end_J[chosen], rate_J[chosen], edges_E).tolist()

    stages, hosts = found["stage"].astype(str), found["host"].astype(str)
    decoding = stages == "decode"
    return {
        "seconds": ((edges_E[:-1] + edges_E[1:]) / 2).tolist(),
        "pauses": cuts,
        "stages": {stage: series(stages == stage) for stage in dict.fromkeys(stages.tolist())},
        "hosts": {host: series((hosts == host) & decoding) for host in sorted(set(hosts.tolist()))},
    }


def without_pauses(started_J: np.ndarray, wall_J: np.ndarray) -> tuple[np.ndarray, list[dict[str, float]]]:
    """(begins in seconds since the first, pauses cut out; the cuts). started_J: ascending."""
    begin_J = started_J - started_J[0]
    reached = np.maximum.accumulate(begin_J + wall_J)
    pause = np.append(0.0, begin_J[1:] - reached[:-1])
    pause[pause < max(30.0, IDLE_SHARE * reached[-1])] = 0
    moved = begin_J - np.cumsum(pause)
    return moved, [{"at_s": float(moved[i]), "pause_s": float(pause[i])} for i in np.flatnonzero(pause)]


def throughput(begin_J: np.ndarray, end_J: np.ndarray, rate_J: np.ndarray, edges_E: np.ndarray) -> np.ndarray:
    """Mean rate between edges (E - 1,), of jobs that run evenly."""
    done_E = [rate_J @ (np.clip(edge, begin_J, end_J) - begin_J) for edge in edges_E]
    return np.diff(done_E) / np.diff(edges_E)
