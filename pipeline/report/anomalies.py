"""Worth a look: anomalies, and what leaves them out of training: DuckDB SQL over OUT/segments.parquet, as the
trainer's `data.where` takes it. Segments without the statistic are kept."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.report.corpus import AMOUNT, Corpus, Row
from pipeline.report.duplicates import groups
from stages.shards import tables

EXAMPLES = 3
NAMED_AT_MOST = 40  # recordings in one condition; more go to a file next to the page
POOR_PERPLEXITY = 0.1  # of a codebook's size
FAR = 6.0  # from the median, in median absolute deviations scaled to a standard deviation
DUPLICATES = "report/near_duplicates.txt"


class Anomaly(NamedTuple):
    """`where`: of its segments; None where not leaving them out helps, but `remedy`."""

    what: str
    why: str
    segments: int = 0
    recordings: int = 0
    hours: float = 0.0
    examples: Sequence[str] = ()
    where: str | None = None
    remedy: str = ""

    @property
    def exclude(self) -> str:
        return setting(self.where) if self.where else self.remedy


def setting(where: str) -> str:
    """The trainer's option, for a shell, that leaves them out."""
    return f'--set "data.where=({where}) IS NOT TRUE"'


NARROW = "bandwidth_hz < 0.6 * least(12000, source_rate_hz / 2) AND silence < 0.5"
CUT = "shorter than its header says"
# (what, where, why). Each limit is ours (D): there a listener or the distributions of `docs/benchmarks.md`
# begin to differ from ordinary music.
SEGMENTS = (
    ("narrow or upsampled", NARROW, "no sound above 60 % of the band that its sample rate allows"),
    ("mostly silent", "silence > 0.5", "over half of its 10-ms frames are below -60 dBFS"),
    ("clipped", "clipping > 0.002", "over 0.2 % of its samples are at full scale"),
    ("very quiet", "lufs < -45 AND silence <= 0.5", "below -45 LUFS"),
    ("channels cancel", "stereo < -0.3", "left and right are opposite, the mono downmix loses them"),
    ("offset", "abs(dc) > 0.02", "a constant offset of over 2 % of full scale"),
    ("few codes", "entropy_bits < 2", "its codes hold under 2 bits each: a tone, noise or nothing"),
    ("damaged packets", "damaged_packets > 0", "the decoder skipped damaged packets (under 1 %)"),
    (CUT, "header_s - decoded_s > least(0.05 * header_s, 10)", "the header promises more: a cut download?"),
)


def anomalies(corpus: Corpus, found: Row) -> list[Anomaly]:
    """Most hours first. `found`: the corpus's `numbers`."""
    out = [one for kind in SEGMENTS if (one := _segments(corpus, *kind)).segments]
    out = sorted(out + _duplicates(corpus) + _far_shards(corpus), key=lambda one: -one.hours)
    return out + _without_condition(found)


def everything(anomalies: Sequence[Anomaly]) -> str | None:
    """One option for all that have a condition."""
    joined = " OR ".join(f"({one.where})" for one in anomalies if one.where)
    return setting(joined) if joined else None


def as_data(anomalies: Sequence[Anomaly]) -> list[Row]:
    return [one._asdict() | {"exclude": one.exclude} for one in anomalies]


def _segments(corpus: Corpus, what: str, where: str, why: str) -> Anomaly:
    counted = corpus.one(f"SELECT {AMOUNT} FROM segments WHERE {where}")
    if not counted["segments"]:
        return Anomaly(what, why)
    values = "printf(' (%.1f s, decoded %.1f s)', any_value(header_s), any_value(decoded_s))"
    also = f" || {values}" if what == CUT else ""
    examples = corpus.rows(
        f"SELECT coalesce(path, key){also} AS path FROM named WHERE {where} GROUP BY coalesce(path, key) "
        f"ORDER BY count(*) DESC, 1 LIMIT {EXAMPLES}"
    )
    # segments.parquet does not have the view's column
    where = where.replace("entropy_bits", "list_avg(code_entropy_bits)")
    return Anomaly(what, why, **counted, examples=[row["path"] for row in examples], where=where)


def _duplicates(corpus: Corpus) -> list[Anomaly]:
    if not (found := groups(corpus)):
        return []
    spare = [recording for group in found for recording in group["recordings"][1:]]
    across = sum(len(set(group["splits"])) > 1 for group in found)
    why = f"the same music in other files: {len(found)} groups; all but the longest of each may be left out"
    if across:
        why += f"; {across} groups are in both train and validation"
    # DuckDB reads no file of an object store here
    if len(spare) <= NAMED_AT_MOST or not corpus.out.is_local:
        listed = ", ".join(map(tables.quoted, spare))
    else:
        corpus.out.write(DUPLICATES, "".join(f"{recording}\n" for recording in spare).encode())
        path = tables.quoted(corpus.out.path(DUPLICATES))
        listed = f"SELECT column0 FROM read_csv({path}, header=false, all_varchar=true)"
    examples = [" = ".join(group["paths"][:3]) for group in found[:EXAMPLES]]
    one = _segments(corpus, "near-duplicates", f"recording IN ({listed})", why)
    return [one._replace(examples=examples)]


def _far_shards(corpus: Corpus) -> list[Anomaly]:
    """Of eight or more."""
    names = ("rms_db", "silence", "entropy_bits", "bandwidth_hz", "cqt_mean")
    means = ", ".join(f"avg({name}) AS {name}" for name in names)
    # A deviation of zero would make any difference far: at least 1 % of the median counts.
    rows = corpus.rows(
        f"""WITH m AS (UNPIVOT (SELECT shard, {means} FROM segments GROUP BY shard)
        ON COLUMNS(* EXCLUDE shard) INTO NAME name VALUE mean),
        c AS (SELECT name, median(mean) AS middle, mad(mean) AS deviation FROM m GROUP BY name
        HAVING (SELECT count(DISTINCT shard) FROM m) >= 8)
        SELECT DISTINCT shard FROM m JOIN c USING (name)
        WHERE abs(mean - middle) > {FAR} * 1.4826 * greatest(deviation, 0.01 * abs(middle), 0.002)
        ORDER BY shard LIMIT {NAMED_AT_MOST}"""
    )
    where = f"shard IN ({', '.join(tables.quoted(row['shard']) for row in rows)})"
    why = "means of loudness, silence, bandwidth, code entropy or CQT are far from the other shards'"
    return [_segments(corpus, "far shards", where, why)] if rows else []


def _without_condition(found: Row) -> list[Anomaly]:
    differ, out = found["agreement"], []
    for level in found["codes"]:
        if level["share"] < POOR_PERPLEXITY:
            why = f"perplexity {level['perplexity']:.0f} of {level['codes']} codes, {level['dead']} dead, "
            why += f"code {level['top_code']} is {level['top_share']:.0%}"
            remedy = "fit the teacher on more varied audio (overtone labels … --refit)"
            out.append(Anomaly(f"poor codebook {level['level']}", why, remedy=remedy))
    if differ["differ"]:
        why = f"{differ['differ']} shards hold different numbers of frames in their columns"
        remedy = f"overtone verify {found['out']} --repair, then label again"
        out.append(Anomaly("columns disagree", why, examples=tuple(differ["examples"]), remedy=remedy))
    slow = [
        f"{row['stage']} {row['shard']} on {row['host']}: {row['times_median']:.0f} × the median"
        for row in found["slowest_shards"]
        if (row["times_median"] or 0) > 5
    ]
    if slow:
        why = "shards that took over five times as long for their audio as the stage's median"
        remedy = "look at those hosts; the labels are complete"
        out.append(Anomaly("stragglers", why, examples=slow[:EXAMPLES], remedy=remedy))
    return out
