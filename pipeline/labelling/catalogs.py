"""Scan and plan of an OUT."""

import contextlib
import filecmp
import functools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.compute as pc

from cluster.pools import available_cpus
from pipeline.labelling.progress import Progress
from stages.label import gathering
from stages.label.plan import PlanSummary, plan
from stages.label.recipe import Config
from stages.label.scan.parts import Parts
from stages.label.scan.scan import ScanSummary, scan
from stages.shards import catalog, parts, scratch
from stages.shards.storage import Storage

CATALOG, PLAN, REJECTED = "catalog.parquet", "plan.parquet", "rejected.parquet"


class Catalogs:
    """OUT's tables of the files found, their shards, and those rejected."""

    scanned: ScanSummary
    planned: PlanSummary
    tombstoned: dict[str, int]  # recordings of the plan that are no longer used, by reason
    rejected: pa.Table

    def __init__(self, out: Storage, config: Config, progress: Progress, runner: ModuleType):
        self.out, self.config, self.progress, self.runner = out, config, progress, runner

    def scan_and_plan(self, retry_rejected: str | None = None) -> None:
        parts = Parts(self.out)
        with self._replacing(CATALOG) as (previous, new):
            self._scan(previous, new, retry_rejected, parts)
        parts.clear()
        with self.out.fetched(CATALOG) as found, self._replacing(PLAN) as (previous, new):
            self._plan(previous, found, new, self._retried(retry_rejected))

    def as_they_are(self) -> None:
        """Of an earlier run. ValueError where there is none."""
        if not self.out.exists(PLAN):
            raise ValueError(
                f"{self.out.root} has no plan yet, which says what is in which shard: run the same command "
                f"without --shards and --finish first, with --limit 1 to label no more than a first shard"
            )
        with self.out.fetched(CATALOG) as path:
            seen = Counter(catalog.read_catalog(path, ["status"])["status"].to_pylist())
        with self.out.fetched(PLAN) as path:
            plan = catalog.read_plan(path, ["tombstone"])["tombstone"]
        found = seen["kept"] + seen["rejected"] + seen["duplicate"]
        counts = {name: seen[name] for name in ("kept", "rejected", "excluded")}
        unread = dict(ignored=0, unchanged=found, hours=0.0, estimated=0, endings={}, sidecars={})
        self.scanned = ScanSummary(found=found, duplicates=seen["duplicate"], **counts, **unread)
        self.tombstoned = dict(sorted(Counter(plan.drop_null().to_pylist()).items()))

    def dry_scan_and_plan(self, folder: Path) -> Path:
        """Returns the plan's path in `folder`. OUT is only read."""
        with self._previous(CATALOG) as previous:
            self._scan(previous, folder / CATALOG, None, Parts(self.out, writes=False))
        with self._previous(PLAN) as previous:
            self._plan(previous, folder / CATALOG, folder / PLAN, [])
        return folder / PLAN

    def _scan(self, previous: Path | None, new: Path, retry: str | None, parts: Parts) -> None:
        def show(event: dict) -> None:
            step = event["step"]
            done = {"list": "seen", "probe": "headers read", "hash": "hashed"}.get(step, step)
            self.progress.status(f"scanning: {event.get('done', 0):,} files {done}", event.get("last", False))

        run = self.config.run
        self.scanned = scan(
            list(run.audio),
            previous,
            new,
            workers=run.scan_workers or available_cpus(),
            exclude=run.exclude,
            include_hidden=run.include_hidden,
            retry_rejected=_wanted(retry),
            known_sha256=lambda recording: self._known(recording),
            parts=parts,
            probe_all=functools.partial(self.runner.probe_all, roots=list(run.audio)),
            progress=show,
        )

    def _plan(self, previous: Path | None, found: Path, new: Path, retry: list[str]) -> None:
        self.planned = plan(previous, found, new, **asdict(self.config.recipe.plan), retry=retry)
        self.tombstoned = self.planned.tombstoned

    @functools.cached_property
    def _known(self) -> Callable[[str], str | None]:
        """Of a recording the sha256 of the bytes it was labelled from, to tell an edit from a touch."""
        return gathering.sources(self.out)

    def _of_stages(self) -> pa.Table:
        """By the latest rejected.parquet."""
        if not self.out.exists(REJECTED):
            return gathering.REJECTED.empty_table()
        table = self.out.read_table(REJECTED)
        return table.filter(pc.not_equal(table["stage"], "scan"))

    def refused(self) -> pa.Array:
        """Recordings that a stage rejected."""
        return self._of_stages()["recording"].combine_chunks()

    def _retried(self, reason: str | None) -> list[str]:
        if (wanted := _wanted(reason)) is None:
            return []
        rows = self._of_stages().to_pylist()
        return [r["recording"] for r in rows if wanted == "all" or wanted.lower() in r["reason"].lower()]

    def _previous(self, name: str) -> contextlib.AbstractContextManager[Path | None]:
        return self.out.fetched(name) if self.out.exists(name) else contextlib.nullcontext()

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[tuple[Path | None, Path]]:
        """(the file in OUT, a path for the next one), which replaces it unless its bytes are the same."""
        with self._previous(name) as previous, scratch.directory() as folder:
            new = Path(folder) / name
            yield previous, new
            if previous is None or not filecmp.cmp(previous, new, shallow=False):
                with self.out.attempt(name) as path:
                    shutil.move(new, path)

    def live(self) -> pa.Table:
        with self.out.fetched(PLAN) as path:
            return catalog.live(catalog.read_plan(path, ["recording", "shard", "tombstone"]))

    def live_shards(self) -> list[tuple[str, float]]:
        with self.out.fetched(PLAN) as path:
            return live_shards(path, self.config.recipe.decode.max_recording_h)

    def labelled(self) -> tuple[int, int]:
        """(recordings that are kept, those of them for validation): without what a stage rejected."""
        with self.out.fetched(PLAN) as path:
            live = catalog.live(catalog.read_plan(path, ["recording", "split", "tombstone"]))
        kept = live.filter(pc.invert(pc.is_in(live["recording"], self.refused())))
        return kept.num_rows, kept["split"].to_pylist().count("valid")

    def write_rejected(self, columns: tuple[str, ...]) -> None:
        with self.out.fetched(CATALOG) as path:
            table = catalog.read_catalog(path, ["status", "recording", "path", "reason"])
        rejected = table.filter(pc.equal(table["status"], "rejected")).drop_columns("status").to_pylist()
        scanned = [{"stage": "scan", "shard": None, **row} for row in rejected]
        place = dict(zip(*self.live().select(["recording", "shard"]).to_pydict().values(), strict=True))
        done = set(place.values())
        rows = gathering.rejected_rows(self.out, columns, done, lambda shard, r: place.get(r) == shard)
        self.rejected = pa.concat_tables([pa.Table.from_pylist(scanned, gathering.REJECTED), rows])
        if not self.out.exists(REJECTED) or not self.out.read_table(REJECTED).equals(self.rejected):
            self.out.write_table(REJECTED, self.rejected)


def decoded_seconds(out: Storage, names: Iterable[str]) -> dict[str, float]:
    """Seconds of audio in each finished and gathered shard of the first of these columns, the audio."""
    audio = next(iter(names), None)
    if audio is None:
        return {}
    table = parts.read(out, "shards", ["shard", "column", "hours"])
    own = table.filter(pc.field("column") == audio)
    return dict(zip(own["shard"].to_pylist(), pc.multiply(own["hours"], 3600).to_pylist(), strict=True))


def _wanted(reason: str | None) -> str | None:
    return None if reason is None else reason.strip() or "all"


def live_shards(path: Path, most_h: float) -> list[tuple[str, float]]:
    live = catalog.live(catalog.read_plan(path, ["shard", "size", "duration_s", "tombstone"]))
    seconds, slices = catalog.likely_seconds(live, most_h), catalog.shard_slices(live)
    return [(name, float(seconds[start : start + n].sum())) for name, (start, n) in slices.items()]
