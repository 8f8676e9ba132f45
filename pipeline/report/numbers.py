"""The numbers of an OUT. The database counts histograms, and quantiles are those of the histograms, so that
six million segments take seconds and little memory."""

from typing import NamedTuple

import numpy as np

from pipeline.report.corpus import HOURS, Corpus, Row
from stages.label.statistics.codes import entropy_bits
from stages.shards import histograms
from stages.signal.rates import RATE_HZ

FINE_BINS = 200  # of a histogram as counted; quantiles are right to one
EXAMPLES = 3
SLOW_FILES = 10


class Statistic(NamedTuple):
    """name: column of `segments`; low, high: range of the histogram, whose end bins hold what is outside; by
    default that of the data."""

    name: str
    title: str
    unit: str
    low: float | None = None
    high: float | None = None


SHOWN = (
    Statistic("length_s", "Segment length", "s"),
    Statistic("lufs", "Loudness", "LUFS", -70, 0),
    Statistic("rms_db", "RMS", "dBFS", -80, 0),
    Statistic("peak_db", "Peak", "dBFS", -60, 0),
    Statistic("silence", "Silence", "share of 10-ms frames", 0, 1),
    Statistic("clipping", "Clipping", "share of samples", 0, 0.01),
    Statistic("dc", "DC offset", "of full scale", -0.05, 0.05),
    Statistic("bandwidth_hz", "Bandwidth", "Hz", 0, 12_000),
    Statistic("stereo", "Stereo correlation", "−1 … 1", -1, 1),
    Statistic("entropy_bits", "Code entropy, mean of levels", "bits", 0, 14),
    Statistic("tuning_cents", "Tuning against A = 440 Hz", "cents", -50, 50),
    Statistic("cqt_mean", "CQT mean", "of the column's values"),
)


def numbers(corpus: Corpus) -> Row:
    totals = corpus.one(
        f"SELECT count(*) AS segments, count(*) FILTER (start = 0) AS recordings, {HOURS}, count(DISTINCT "
        "shard) AS shards, count(*) FILTER (start = 0 AND split = 'valid') AS validation FROM named"
    )
    columns, timed = column_rows(corpus), corpus.one("SELECT count(slowest) AS n FROM shards")["n"]
    size, lacking = sum(column["bytes"] for column in columns), [] if timed else ["slowest_files"]
    return {
        "out": corpus.place,
        **totals,
        "bytes": size,
        "bytes_per_hour": size / totals["hours"] if totals["hours"] else 0,
        "columns": columns,
        "agreement": agreement(corpus),
        "rejects": corpus.rows(
            f"SELECT stage, reason, count(*) AS files, list(path ORDER BY path)[:{EXAMPLES}] AS examples "
            "FROM rejected GROUP BY ALL ORDER BY files DESC, stage, reason"
        ),
        "distributions": {s.name: found for s in SHOWN if (found := distribution(corpus, s))},
        "not_gathered": [s.name for s in SHOWN if s.name in corpus.missing] + lacking,
        "codes": code_use(corpus),
        "sources": corpus.rows(
            "SELECT source_codec AS codec, source_rate_hz AS rate_hz, source_channels AS channels, count(*) "
            f"FILTER (start = 0) AS recordings, {HOURS} FROM segments GROUP BY ALL ORDER BY hours DESC, "
            "codec LIMIT 30"
        ),
        "slowest_shards": slowest_shards(corpus),
        "slowest_files": slowest_files(corpus),
        "timed_shards": timed,
        "longest_files": corpus.rows(
            "SELECT path, l.* EXCLUDE recording FROM (SELECT recording, sum(length_s) AS seconds, min(shard) "
            "AS shard FROM segments GROUP BY recording ORDER BY seconds DESC, recording LIMIT 5) l LEFT JOIN "
            "planned USING (recording) ORDER BY seconds DESC, path"
        ),
    }


def column_rows(corpus: Corpus) -> list[Row]:
    sums = (f"sum({name})::BIGINT AS {name}" for name in ("bytes", "segments", "frames", "rejected"))
    found = corpus.rows(
        f"""SELECT "column" AS name, any_value(stage) AS stage, count(*) AS shards, sum(hours) AS hours,
        {", ".join(sums)},
        sum(bytes) / nullif(sum(hours), 0) AS bytes_per_hour,
        sum(frames) * {RATE_HZ}.0 / nullif(sum(samples), 0) AS frames_per_s,
        sum(wall_s) AS wall_s, sum(busy_s) AS busy_s,
        sum(hours) * 3600 / nullif(sum(wall_s), 0) AS times_real_time,
        sum(greatest(attempts - 1, 0))::BIGINT AS retries, count(DISTINCT host) AS hosts
        FROM shards GROUP BY 1"""
    )
    return sorted(found, key=lambda row: corpus.registry.names.index(row["name"]))


def agreement(corpus: Corpus) -> Row:
    """Shards whose columns differ, though none rejected anything."""
    return corpus.one(
        f"""SELECT count(*) AS differ, (SELECT count(DISTINCT shard) FROM shards) AS shards,
        coalesce(list(shard ORDER BY shard)[:{EXAMPLES}], []) AS examples FROM (SELECT shard FROM shards
        GROUP BY shard HAVING coalesce(sum(rejected) FILTER (stage <> 'decode'), 0) = 0
        AND (min(frames) <> max(frames) OR min(segments) <> max(segments)))"""
    )


def distribution(corpus: Corpus, statistic: Statistic) -> Row | None:
    """None where it has no values."""
    name, title, unit, low, high = statistic
    if low is None:
        low, high = corpus.one(f"SELECT min({name}) AS low, max({name}) AS high FROM segments").values()
    if low is None or name in corpus.missing:
        return None
    width = (high - low) / FINE_BINS or 1.0
    bins = corpus.rows(
        f"""SELECT least(greatest(floor((x - {low!r}) / {width!r})::INT, 0), {FINE_BINS - 1}) AS bin,
        count(*) AS n, sum(x) AS total, min(x) AS low, max(x) AS high
        FROM (SELECT {name} AS x FROM segments) WHERE x IS NOT NULL GROUP BY 1"""
    )
    if not bins:
        return None
    counts = np.zeros(FINE_BINS, np.int64)
    counts[[row["bin"] for row in bins]] = [row["n"] for row in bins]
    count = int(counts.sum())
    least, most = min(row["low"] for row in bins), max(row["high"] for row in bins)
    edges, reached = low + width * np.arange(FINE_BINS + 1), np.append(0, np.cumsum(counts)) / count
    p5, p50, p95 = np.interp([0.05, 0.5, 0.95], reached, edges).clip(least, most).tolist()
    mean = sum(row["total"] for row in bins) / count
    row = dict(title=title, unit=unit, count=count, mean=mean, min=least, max=most, p5=p5, p50=p50, p95=p95)
    return row | {"low": low, "width": width, "counts": counts.tolist()}


def code_counts(corpus: Corpus) -> np.ndarray | None:
    """(K, C) float64; None when not gathered."""
    name = corpus.registry.current.get("codes")
    return histograms.read(corpus.out, name)[0].get("codes") if name else None


def code_use(corpus: Corpus) -> list[Row]:
    counts_KC, levels = code_counts(corpus), []
    for level, counts_C in enumerate(() if counts_KC is None else counts_KC):
        bits, size = float(entropy_bits(counts_C[None])[0]), len(counts_C)
        used, top = int((counts_C > 0).sum()), int(counts_C.argmax())
        share = float(counts_C[top] / max(counts_C.sum(), 1))
        row = dict(level=level, codes=size, used=used, dead=size - used, entropy_bits=bits)
        levels.append(row | dict(perplexity=2**bits, share=2**bits / size, top_code=top, top_share=share))
    return levels


def slowest_shards(corpus: Corpus) -> list[Row]:
    """Three of each stage."""
    return corpus.rows(
        """WITH paced AS (SELECT *, wall_s / hours AS pace FROM shards WHERE hours > 0 AND wall_s > 0),
        medians AS (SELECT stage, approx_quantile(pace, 0.5) AS median FROM paced GROUP BY stage)
        SELECT stage, shard, host, wall_s, busy_s, hours, times_real_time, attempts,
        pace / nullif(median, 0) AS times_median FROM paced JOIN medians USING (stage)
        QUALIFY row_number() OVER (PARTITION BY stage ORDER BY pace DESC, shard) <= 3
        ORDER BY times_median DESC, shard"""
    )


def slowest_files(corpus: Corpus) -> list[Row]:
    """By seconds of decoding beyond those at the mean speed (`lost_s`, below zero for faster ones); rejected
    ones too."""
    return corpus.rows(
        f"""WITH mean AS (SELECT sum(hours) * 3600 / nullif(sum(wall_s), 0) AS speed FROM shards
        WHERE stage = 'decode'),
        timed AS (SELECT shard, host, unnest(slowest, recursive := true) FROM shards),
        lost AS (SELECT timed.*, seconds - coalesce(seconds * times_real_time / nullif(speed, 0), 0) AS lost_s
        FROM timed, mean ORDER BY lost_s DESC, recording LIMIT {SLOW_FILES})
        SELECT path, recording, seconds, times_real_time, lost_s, shard, host FROM lost
        LEFT JOIN planned USING (recording) ORDER BY lost_s DESC, recording"""
    )
