"""The end of a labelling run: where the labels are, what is in them, what was rejected and why."""

from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline.labelling.registry import Registry
from stages.label import gathering, machine
from stages.label.recipe import Config
from stages.label.scan.scan import ScanSummary
from stages.shards import parts
from stages.shards.names import printable
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

EXAMPLES, KINDS = 3, 12
SIDECARS = "left out, put there by other programs (run.include_hidden)"


@dataclass(frozen=True)
class Outcome:
    """found = kept + rejected + duplicates. `failed`: unfinished shard → why."""

    found: int
    kept: int
    rejected: int
    duplicates: int
    failed: dict[str, str]
    text: str
    too_many_rejected: bool
    incomplete: bool = False  # --finish, and shards are missing

    @property
    def code(self) -> int:
        return 1 if self.failed or self.too_many_rejected or self.incomplete else 0


def summarise(out: Storage, config: Config, catalogs, run, finish: bool = False) -> Outcome:
    """Counts of the OUT after a run, and the text of them."""
    registry, failed = run.registry, run.failed
    scanned = catalogs.scanned
    _, valid = catalogs.labelled()
    rejects = catalogs.rejected.to_pylist()
    rejected = scanned.rejected + len({r["recording"] for r in rejects if r["stage"] != "scan"})
    kept = scanned.found - rejected - scanned.duplicates
    share = rejected / max(1, scanned.found)
    limit = config.run.max_rejected_share
    lines = [printable(out.root), *(f"  {line}" for line in column_lines(out, registry))]
    lines.append(
        f"  recordings: {scanned.found} found = {kept} kept + {rejected} rejected + {scanned.duplicates} "
        f"duplicates; {valid} of the kept are for validation"
    )
    lines += [f"  {line}" for line in left_out_lines(scanned)]
    if unused := ", ".join(f"{n} {why}" for why, n in catalogs.tombstoned.items() if n):
        lines.append(f"  no longer used: {unused}")
    lines += rejected_lines(rejects)
    if run.stopped:
        lines.append(f"  {run.stopped}; see {out.path('rejected.parquet')}")
    elif share > limit:
        lines.append(
            f"  {share:.1%} of the recordings were rejected, more than run.max_rejected_share {limit:.1%}: "
            f"see {out.path('rejected.parquet')}; the others are labelled"
        )
    if missing := len(run.planned) - len(run.complete(registry.names)) - len(failed):
        lines.append(f"  {missing} of the plan's {len(run.planned)} shards are still to be labelled")
    lines += failed_lines(run)
    stopped = bool(run.stopped) or share > limit
    text, lacks = "\n".join(lines), bool(finish and missing)
    return Outcome(scanned.found, kept, rejected, scanned.duplicates, failed, text, stopped, lacks)


def summarise_part(out: Storage, run, part: str) -> Outcome:
    """Of a part of the shards, which leaves the tables to `--finish`."""
    done = run.complete([job.column for job in run.jobs()]) & {name for name, _ in run.shards}
    lines = [
        f"{printable(out.root)}: {len(done)} of the {len(run.shards)} shards of part {part} are finished; "
        f"when all parts are, the same command with --finish instead of --shards writes the tables"
    ]
    lines += [f"  {run.stopped}"] if run.stopped else []
    lines += failed_lines(run)
    return Outcome(0, 0, 0, 0, run.failed, "\n".join(lines), bool(run.stopped))


def failed_lines(run) -> list[str]:
    """Shards that failed, by their reasons."""
    lines, failed = [], run.failed
    if failed:
        lines.append(f"  {len(failed)} shards are not finished; the same command tries them again:")
        by_reason: dict[str, list[str]] = {}
        for shard, why in failed.items():
            by_reason.setdefault(why.replace(shard, "SHARD"), []).append(shard)
        lines += [
            f"    {len(names):>6}  {printable(why)}  (e.g. {names[0]})" for why, names in by_reason.items()
        ]
        lines.append(f"    what raised each: {run.progress.log_place}")
    return lines


def left_out_lines(scanned: ScanSummary) -> list[str]:
    """What no run looks into: files by their ending, sidecars by the pattern of their name."""
    lines = []
    for what, kinds in (
        ("left out, no audio by their ending", scanned.endings),
        (SIDECARS, scanned.sidecars),
    ):
        if kinds:
            named = ", ".join(f"{count} {printable(kind)}" for kind, count in list(kinds.items())[:KINDS])
            more = sum(list(kinds.values())[KINDS:])
            lines.append(f"{what}: {named}" + (f", {more} others" if more else ""))
    return lines


def shown(size: float) -> str:
    """A number of bytes as people read it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def column_lines(out: Storage, registry: Registry) -> list[str]:
    """One line per current column, and the audio in use: without that of tombstoned recordings."""
    table = parts.read(out, "shards", ["column", "bytes"])
    if not table.num_rows:
        return ["no shard is finished"]
    lines = []
    for name in registry.names:
        own = table.filter(pc.equal(table["column"], name))
        size = (pc.sum(own["bytes"]).as_py() or 0) / 2**20
        lines.append(f"columns/{name:<16} {own.num_rows:>6} shards {size:>10.1f} MiB")
    tables = gathering.segments(out, registry.names, ["samples"])
    counts, samples = zip((0, 0), *((len(t), pc.sum(t["samples"]).as_py() or 0) for t in tables), strict=True)
    lines += machine_lines(out, registry)
    return [*lines, f"{sum(counts)} segments, {sum(samples) / RATE_HZ / 3600:.2f} h of audio"]


def machine_lines(out: Storage, registry: Registry) -> list[str]:
    """Where the labels in use are of several kinds of CPU or GPU."""
    kinds = machine.recorded(out, registry.names)
    several = [f"{', '.join(sorted(found))}" for found in kinds.values() if len(found) > 1]
    return [f"made on several kinds of machine: {what}" for what in several]


def rejected_lines(rejects: list[dict]) -> list[str]:
    """The reasons of rejection by number of files, with examples."""
    if not rejects:
        return []
    lines = ["  rejected:"]
    paths: dict[tuple[str, str], list[str]] = {}
    for reject in rejects:
        paths.setdefault((reject["stage"], reject["reason"]), []).append(reject["path"])
    for (stage, reason), own in sorted(paths.items(), key=lambda item: -len(item[1]))[:20]:
        lines.append(f"    {len(own):>6}  {stage:<6} {printable(reason)}")
        lines += [f"                   {printable(path)}" for path in own[:EXAMPLES]]
    if len(paths) > 20:
        lines.append(f"    … {len(paths) - 20} more reasons in rejected.parquet")
    return lines
