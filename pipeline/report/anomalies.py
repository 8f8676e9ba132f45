"""Worth a look: what is odd about an OUT, how much of it there is, and the condition that leaves it out of
training.

A condition is DuckDB SQL over OUT/segments.parquet, as the trainer's `data.where` takes it; segments for
which it was not gathered are kept.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.report.corpus import Corpus, quoted
from pipeline.report.duplicates import Group, groups
from stages.signal.rates import RATE_HZ

EXAMPLES = 3
NAMED_AT_MOST = 40  # recordings in one condition; more go to a file of their own beside the page
POOR_PERPLEXITY = 0.1  # of a codebook's size
FAR = 6.0  # from the median, in median absolute deviations as wide as a standard deviation
TWINS = "report/near_duplicates.txt"


@dataclass(frozen=True)
class Anomaly:
    """`where`: of the odd segments; None where leaving segments out does not mend it, then `remedy` says what
    does."""

    what: str
    why: str
    segments: int
    recordings: int
    hours: float
    examples: tuple[str, ...]
    where: str | None = None
    remedy: str = ""

    @property
    def exclude(self) -> str:
        """What to give the trainer, or what else to do."""
        return setting(self.where) if self.where else self.remedy


def setting(where: str) -> str:
    """The trainer's option that leaves out segments of which `where` is true; for a shell."""
    return "--set " + '"data.where=' + f"({where}) IS NOT TRUE" + '"'


@dataclass(frozen=True)
class Kind:
    what: str
    where: str
    why: str


# Each limit is ours (D): where a listener or the distributions of `docs/benchmarks.md` begin to differ from
# ordinary music.
SEGMENTS = (
    Kind(
        "narrow or upsampled",
        "bandwidth_hz < 0.6 * least(12000, source_rate_hz / 2) AND silence < 0.5",
        "nothing sounds above 60 % of the band its sample rate promises",
    ),
    Kind("mostly silent", "silence > 0.5", "over half of its 10-ms frames lie below -60 dBFS"),
    Kind("clipped", "clipping > 0.002", "over 0.2 % of its samples stand at full scale"),
    Kind("very quiet", "lufs < -45 AND silence <= 0.5", "below -45 LUFS"),
    Kind("channels cancel", "stereo < -0.3", "left and right are opposite, the mono downmix loses them"),
    Kind("offset", "abs(dc) > 0.02", "a constant offset of over 2 % of full scale"),
    Kind("few codes", "entropy_bits < 2", "its codes hold under 2 bits each: a tone, noise or nothing"),
    Kind("damaged packets", "damaged_packets > 0", "the decoder passed over damaged packets (under 1 %)"),
)
# views' names that segments.parquet does not have
COLUMN_OF = {"entropy_bits": "list_avg(code_entropy_bits)"}


def anomalies(corpus: Corpus, found: dict[str, Any]) -> list[Anomaly]:
    """Everything odd, most hours first. `found`: the corpus's `numbers`."""
    counted = corpus.one(
        f"SELECT "
        f"{', '.join(f'count(*) FILTER ({kind.where}) AS k{i}' for i, kind in enumerate(SEGMENTS))} "
        f"FROM segments"
    )
    odd = [
        _segments(corpus, kind.what, kind.where, kind.why)
        for kind, many in zip(SEGMENTS, counted.values(), strict=True)
        if many
    ]
    odd += _duplicates(corpus, groups(corpus)) + _far_shards(corpus)
    odd.sort(key=lambda oddity: -oddity.hours)
    return odd + _codebooks(found) + _columns(found) + _stragglers(found)


def everything(odd: list[Anomaly]) -> str | None:
    """The one option that leaves out all that a condition can leave out."""
    parts = [f"({o.where})" for o in odd if o.where]
    return setting(" OR ".join(parts)) if parts else None


def as_data(odd: list[Anomaly]) -> list[dict[str, Any]]:
    return [asdict(oddity) | {"exclude": oddity.exclude} for oddity in odd]


def _segments(corpus: Corpus, what: str, where: str, why: str) -> Anomaly | None:
    counted = corpus.one(
        "SELECT count(*) AS n, count(DISTINCT recording) AS recordings, coalesce(sum(samples), 0) / "
        f"{RATE_HZ}.0 / 3600 AS hours FROM segments WHERE {where}"
    )
    if not counted["n"]:
        return None
    examples = corpus.rows(
        f"SELECT coalesce(path, key) AS path, count(*) AS n FROM named WHERE {where} GROUP BY 1 "
        f"ORDER BY n DESC, 1 LIMIT {EXAMPLES}"
    )
    for name, own in COLUMN_OF.items():
        where = where.replace(name, own)
    return Anomaly(
        what,
        why,
        counted["n"],
        counted["recordings"],
        counted["hours"],
        tuple(row["path"] for row in examples),
        where,
    )


def _duplicates(corpus: Corpus, found: list[Group]) -> list[Anomaly]:
    """Near-duplicates: all but the longest of each group may go."""
    if not found:
        return []
    spare = [recording for group in found for recording in group.recordings[1:]]
    across = sum(len(set(group.splits)) > 1 for group in found)
    why = f"the same music in other files: {len(found)} groups; all but the longest of each may go"
    if across:
        why += f"; {across} groups lie on both sides of train and validation"
    examples = tuple(" = ".join(group.paths[:3]) for group in found[:EXAMPLES])
    # DuckDB reads no file of an object store here
    if len(spare) <= NAMED_AT_MOST or not corpus.out.is_local:
        listed = ", ".join(map(quoted, spare))
    else:
        corpus.out.write(TWINS, "".join(f"{recording}\n" for recording in spare).encode())
        listed = (
            f"SELECT column0 FROM read_csv({quoted(corpus.out.path(TWINS))}, header=false, all_varchar=true)"
        )
    odd = _segments(corpus, "near-duplicates", f"recording IN ({listed})", why)
    return (
        [Anomaly(odd.what, odd.why, odd.segments, odd.recordings, odd.hours, examples, odd.where)]
        if odd
        else []
    )


def _far_shards(corpus: Corpus) -> list[Anomaly]:
    """Shards whose mean loudness, silence or code entropy lies far from the other shards'."""
    names = ("rms_db", "silence", "entropy_bits", "bandwidth_hz", "cqt_mean")
    means = ", ".join(f"avg({n}) AS {n}" for n in names)
    medians = ", ".join(f"median({n}) AS {n}_middle" for n in names)
    deviations = ", ".join(f"median(abs({n} - {n}_middle)) AS {n}_mad" for n in names)
    # A deviation of nothing would make any difference far: at least 1 % of the middle counts.
    far = " OR ".join(
        f"abs({n} - {n}_middle) > {FAR} * 1.4826 * greatest({n}_mad, 0.01 * abs({n}_middle), 0.002)"
        for n in names
    )
    rows = corpus.rows(
        f"WITH m AS (SELECT shard, {means} FROM segments GROUP BY shard), c AS (SELECT {medians} FROM m), d "
        f"AS (SELECT {deviations} FROM m, c) SELECT shard FROM m, c, d WHERE (SELECT count(*) FROM m) >= 8 "
        f"AND ({far}) ORDER BY shard LIMIT {NAMED_AT_MOST}"
    )
    if not rows:
        return []
    listed = ", ".join(quoted(row["shard"]) for row in rows)
    odd = _segments(
        corpus,
        "far shards",
        f"shard IN ({listed})",
        "means of loudness, silence, bandwidth, code entropy or CQT lie far from the other shards'",
    )
    return [odd] if odd else []


def _codebooks(found: dict[str, Any]) -> list[Anomaly]:
    return [
        Anomaly(
            f"poor codebook {level['level']}",
            f"perplexity {level['perplexity']:.0f} of {level['codes']} codes, "
            f"{level['dead']} dead, code {level['top_code']} is {level['top_share']:.0%}",
            0,
            0,
            0.0,
            (),
            remedy="fit the teacher on more varied audio (overtone labels … --refit)",
        )
        for level in found["codes"]
        if level["share"] < POOR_PERPLEXITY
    ]


def _columns(found: dict[str, Any]) -> list[Anomaly]:
    agreement = found["agreement"]
    if not agreement["differ"]:
        return []
    return [
        Anomaly(
            "columns disagree",
            f"{agreement['differ']} shards hold different numbers of frames in their columns",
            0,
            0,
            0.0,
            tuple(agreement["examples"]),
            remedy=f"overtone verify {found['out']} --repair, then label again",
        )
    ]


def _stragglers(found: dict[str, Any]) -> list[Anomaly]:
    slow = [row for row in found["slowest_shards"] if row["times_median"] and row["times_median"] > 5]
    if not slow:
        return []
    examples = tuple(
        f"{row['stage']} {row['shard']} on {row['host']}: {row['times_median']:.0f} × the median"
        for row in slow[:EXAMPLES]
    )
    return [
        Anomaly(
            "stragglers",
            "shards that took over five times as long for their audio as the stage's median",
            0,
            0,
            0.0,
            examples,
            remedy="look at those hosts; the labels are whole",
        )
    ]
