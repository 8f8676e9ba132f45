"""What a labelling run ends with: where the labels are, what is in them, what was refused and why."""

from collections import Counter
from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline.labelling.registry import Registry
from stages.label import gathering
from stages.label.recipe import Config
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

EXAMPLES = 3


@dataclass(frozen=True)
class Outcome:
    """found = kept + rejected + duplicates. `failed`: shards that are not finished, and why."""

    found: int
    kept: int
    rejected: int
    duplicates: int
    failed: dict[str, str]
    text: str
    too_many_rejected: bool

    @property
    def code(self) -> int:
        return 1 if self.failed or self.too_many_rejected else 0


def summarise(out: Storage, config: Config, catalogs, registry: Registry, failed: dict[str, str]) -> Outcome:
    """Count what there is and say it."""
    scanned, planned = catalogs.scanned, catalogs.planned
    rejects = catalogs.rejected.to_pylist()
    stage_rejects = {r["recording"] for r in rejects if r["stage"] != "scan"}
    rejected = scanned.rejected + len(stage_rejects)
    kept = scanned.found - rejected - scanned.duplicates
    share = rejected / max(1, scanned.found)
    limit = config.run.max_rejected_share
    lines = [f"{out.root}"] + [f"  {line}" for line in column_lines(out, registry)]
    lines.append(
        f"  recordings: {scanned.found} found = {kept} kept + {rejected} rejected + {scanned.duplicates} "
        f"duplicates; {planned.valid} of the kept are for validation"
    )
    gone = ", ".join(f"{n} {why}" for why, n in planned.tombstoned.items() if n)
    if gone:
        lines.append(f"  no longer used: {gone}")
    lines += rejected_lines(rejects)
    if share > limit:
        lines.append(
            f"  {share:.1%} of the recordings were rejected, more than run.max_rejected_share {limit:.1%}: "
            f"see {out.path('rejected.parquet')}; the others are labelled"
        )
    if failed:
        lines.append(f"  {len(failed)} shards are not finished; the same command tries them again:")
        for why, names in _grouped(failed).items():
            lines.append(f"    {len(names):>6}  {why}  (e.g. {names[0]})")
    return Outcome(scanned.found, kept, rejected, scanned.duplicates, failed, "\n".join(lines), share > limit)


def shown(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _grouped(failed: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for shard, why in failed.items():
        groups.setdefault(why.replace(shard, "SHARD"), []).append(shard)
    return groups


def column_lines(out: Storage, registry: Registry) -> list[str]:
    """One line per current column, and what is in use of it: tombstoned recordings do not count."""
    if not out.exists("shards.parquet"):
        return ["no shard is finished"]
    table = out.read_table("shards.parquet", ["column", "bytes"])
    lines = []
    for name in registry.names:
        own = table.filter(pc.equal(table["column"], name))
        lines.append(
            f"columns/{name:<16} {own.num_rows:>6} shards "
            f"{(pc.sum(own['bytes']).as_py() or 0) / 2**20:>10.1f} MiB"
        )
    samples = gathering.segments(out, registry.names, ["samples"])["samples"]
    hours = (pc.sum(samples).as_py() or 0) / RATE_HZ / 3600
    return [*lines, f"{len(samples)} segments, {hours:.2f} h of audio"]


def rejected_lines(rejects: list[dict]) -> list[str]:
    """A table of what was rejected and why, with examples."""
    if not rejects:
        return []
    lines = ["  rejected:"]
    counts = Counter((r["stage"], r["reason"]) for r in rejects)
    for (stage, reason), count in counts.most_common(20):
        examples = [r["path"] for r in rejects if (r["stage"], r["reason"]) == (stage, reason)][:EXAMPLES]
        lines.append(f"    {count:>6}  {stage:<6} {reason}")
        lines += [f"                   {path}" for path in examples]
    if len(counts) > 20:
        lines.append(f"    … {len(counts) - 20} more reasons in rejected.parquet")
    return lines
