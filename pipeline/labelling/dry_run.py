"""`--dry-run`: the plan of a run, from a real scan."""

import os
from pathlib import Path

from cluster.pools import available_cpus
from cluster.runner import runner
from pipeline.labelling import registry
from pipeline.labelling.catalogs import Catalogs, decoded_seconds, live_shards
from pipeline.labelling.progress import Progress
from pipeline.labelling.run import bytes_per_s
from pipeline.labelling.summary import left_out_lines, shown
from pipeline.labels import check
from stages.label.recipe import Config
from stages.shards import scratch
from stages.shards.storage import Storage


def describe(config: Config, plain: bool) -> str:
    out = Storage(config.run.out)
    check(config, plain)
    known = registry.planned(out, config.recipe)
    catalogs = Catalogs(out, config, Progress(out), runner(plain))
    with scratch.directory() as folder:
        shards = live_shards(catalogs.dry_scan_and_plan(Path(folder)), config.recipe.decode.max_recording_h)
    s, p = catalogs.scanned, catalogs.planned
    decoded = decoded_seconds(out, known.names if known else ())
    seconds = sum(decoded.get(name, length) for name, length in shards)
    left = [length for name, length in shards if name not in decoded]
    guessed = f", {s.estimated} of them estimated from their size" if s.estimated and left else ""
    before = f", of which {sum(left) / 3600:.2f} h by their headers{guessed}" if left else ", decoded"
    sizes = {kind: size * seconds for kind, size in bytes_per_s(config.recipe).items()}
    free, teacher = out.free_bytes(), config.recipe.codes
    lines = [
        f"{', '.join(config.run.audio)} → {out.root} (nothing is written)",
        f"  found       {s.found} = {s.kept} readable + {s.rejected} rejected + {s.duplicates} duplicates; "
        f"{s.ignored} other files, {s.excluded} excluded",
        *(f"              {line}" for line in left_out_lines(s)),
        f"  recordings  {p.recordings}, {seconds / 3600:.2f} h{before}; {p.valid} for validation",
        f"  shards      {len(shards)} of about {config.recipe.plan.shard_minutes:g} min; {p.new_shards} new",
        *(f"  {kind:<11} {shown(size)}" for kind, size in sizes.items()),
        f"  in all      {shown(sum(sizes.values()))}; "
        + ("an object store" if free is None else f"{shown(free)} free"),
        f"  teacher     {teacher.name if teacher else 'none'}",
        f"  resources   {_resources(config, plain)}",
    ]
    return "\n".join(lines)


def _resources(config: Config, plain: bool) -> str:
    each = []
    for name in ("decode", "codes", "cqt", "audit"):
        pool = getattr(config.run.pools, name)
        each.append(f"{name} {pool.cpus:g} CPU" + (f" + {pool.gpus:g} GPU" if pool.gpus else ""))
    where = f"{runner(plain).NAME} on this machine, {config.run.cpus or available_cpus()} CPUs"
    if (address := os.environ.get("RAY_ADDRESS")) and not plain:
        where = f"Ray cluster at {address}"
    return f"{where}; a worker: {', '.join(each)}"
