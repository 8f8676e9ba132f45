"""The whole chain: against its own stages alone, one process or one a core, and against today's two scripts
(EnCodec)."""

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import av

from tests.bench.measure import CORES, ROOT, Row, Span, run, span, tree_cpu_s

# Fitted before the clock starts, and briefly: what is labelled costs the same however long the fit was.
MEL_RVQ = "{teacher: mel_rvq, fit_minutes: 10, steps: 100}"
ENCODEC = "{teacher: encodec, codebooks: 8}"
CONFIG = """
recipe:
  plan: {{shard_minutes: {shard_minutes}}}
  codes: {codes}
  cqt: {{}}
run: {{audio: {audio}, out: {out}, cpus: {cores}, weights: {weights}}}
"""


def length_s(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / av.time_base


def corpus(music: Path, folder: Path, seconds: float) -> float:
    """Links to tracks of the larger corpus, its packages in turn; returns their seconds."""
    if not music.is_dir():
        raise ValueError(f"no music at {music}: `make music` fetches it, --music names another place")
    homes = sorted(home for home in music.iterdir() if home.is_dir())
    rows = [sorted(p for p in home.rglob("*") if p.suffix in (".ogg", ".opus")) for home in homes]
    turns = [row[n] for n in range(max(map(len, rows))) for row in rows if n < len(row)]
    folder.mkdir(parents=True)
    total = 0.0
    for number, path in enumerate(turns):
        if total >= seconds:
            break
        total += length_s(path)
        (folder / f"{number:03d} {path.name}").symlink_to(path.resolve())
    return total


def write_config(
    path: Path, audio: Path, out: Path, codes: str, shard_minutes: float, weights: Path | None = None
) -> Path:
    path.write_text(
        CONFIG.format(
            audio=json.dumps(str(audio)),
            out=json.dumps(str(out)),
            codes=codes,
            cores=CORES,
            shard_minutes=shard_minutes,
            weights=json.dumps(str(weights) if weights else None),
        )
    )
    return path


def alone(config: Path, number: int, of: int) -> None:
    """Every stage over each `of`-th shard in this process, one after the other, without Ray; prints CPU
    seconds by stage."""
    from cluster.runner import runner
    from pipeline.labelling.catalogs import Catalogs
    from pipeline.labelling.progress import Progress
    from pipeline.labelling.run import LabelRun
    from pipeline.labelling.teachers import located
    from pipeline.labels import open_out
    from stages.label import audit, recipe
    from stages.label.shard import ShardWorker

    asked = recipe.load(str(config))
    out = open_out(asked)
    plain = runner(plain=True)
    catalogs = Catalogs(out, asked, Progress(out), plain)
    catalogs.scan_and_plan()
    planned = catalogs.live_shards()
    todo = LabelRun(asked, out, Progress(out), None, planned, plain, planned)
    todo.weights = todo.known_weights(located(asked.recipe, asked.run.weights), False)
    assert todo.weights is not None, "fit first"
    jobs, found = todo.jobs(), {}
    workers = [(job.stage.name, ShardWorker(job)) for job in jobs]
    workers.append(("audit", audit.AuditWorker(out.base, tuple(job.column for job in jobs))))
    for name, worker in workers:
        begun = tree_cpu_s()
        for shard, _ in todo.shards[number::of]:
            row = worker(shard)
            assert row["status"] == "finished", row
        found[name] = tree_cpu_s() - begun
    print(json.dumps(found))


def chain(config: Path) -> None:
    """A whole `labels` run; prints what passed from Ray being up to the chain's end, and from first begin to
    last end."""
    import cluster.session
    from pipeline import labels
    from pipeline.labelling import progress
    from stages.label import recipe

    up, times, started = Span(), [], cluster.session.session

    @contextmanager
    def session(*arguments, **options):
        with started(*arguments, **options) as here, span(sampled=True) as taken:
            yield here
        up.__dict__.update(taken.__dict__)

    class Watched(progress.Progress):
        def event(self, event: dict) -> None:
            times.append(time.time())
            super().event(event)

    cluster.session.session, labels.Progress = session, Watched
    outcome = labels.label(recipe.load(str(config)))
    print()
    print(json.dumps({**up.__dict__, "work_s": times[-1] - times[0], "code": outcome.code}))


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def against_stages(music: Path, folder: Path, hours: float, shard_minutes: float, teacher: str) -> list[Row]:
    from tests.encodec_weights import cached_weights

    seconds = corpus(music.resolve(), folder / "music", hours * 3600)
    codes, weights = (MEL_RVQ, None) if teacher == "mel_rvq" else (ENCODEC, cached_weights())
    if weights is None:
        run(
            "pipeline",
            "fit-codes",
            write_config(folder / "fit.yaml", folder / "music", folder / "fit", codes, shard_minutes),
        )

    def configured(name: str) -> Path:
        if weights is None:
            shutil.copytree(folder / "fit" / "teachers", folder / name / "teachers")
        return write_config(
            folder / f"{name}.yaml", folder / "music", folder / name, codes, shard_minutes, weights
        )

    stages = last_json(run("tests.bench.part_whole", "alone", configured("alone"), 0, 1))
    halves = [configured(f"beside{number}") for number in range(CORES)]
    with ThreadPoolExecutor(CORES) as pool:
        parts = list(
            pool.map(
                lambda n: last_json(run("tests.bench.part_whole", "alone", halves[n], n, CORES)), range(CORES)
            )
        )
    up = last_json(run("tests.bench.part_whole", "chain", configured("chain")))
    assert up["code"] == 0, up
    inside_s = sum(
        json.loads(record.read_text())["run"]["busy_s"]
        for record in (folder / "chain" / "columns").glob("*/*.json")
    )
    cpu_s, beside_s = sum(stages.values()), sum(sum(part.values()) for part in parts)
    ratio, clean = up["wall_s"] * CORES / cpu_s, (up["wall_s"] * CORES - up["others_s"]) / cpu_s
    shown = ", ".join(f"{name} {s:.1f}" for name, s in stages.items())
    taken = Span(up["wall_s"], up["cpu_s"], up["others_s"]).text()
    return [
        Row(
            f"wall × cores against the CPU time of the stages alone, {teacher}, {seconds / 3600:.2f} "
            f"h in shards of {shard_minutes:g} min",
            f"{ratio:.2f}, without what others took {clean:.2f} (from Ray up: {taken}; first begin to last "
            f"end {up['work_s']:.1f} s; alone {cpu_s:.1f} s CPU: {shown})",
            "≤ 1.10",
            ratio <= 1.10,
        ),
        Row(
            "the same against those stages in one bare process a core, all at once, which slow each other",
            f"{ratio * cpu_s / beside_s:.2f} ({beside_s:.1f} s CPU; in the run these stages took "
            f"{inside_s:.1f}, the rest is Ray, the driver and the start of workers)",
            "",
            None,
        ),
    ]


def against_today(folder: Path, minutes: float) -> list[Row]:
    from tests.encodec_weights import cached_weights

    weights, audio, total = cached_weights(), folder / "music", 0.0
    audio.mkdir(parents=True)
    for path in sorted((ROOT / "examples" / "quickstart").glob("*.ogg")):
        if total < minutes * 60:
            total += length_s(path)
            shutil.copy(path, audio)
    files = sorted(audio.iterdir())
    config = write_config(folder / "encodec.yaml", audio, folder / "out", ENCODEC, 1, weights)
    ours = last_json(run("tests.bench.part_whole", "chain", config))
    assert ours["code"] == 0, ours
    stages = write_config(folder / "alone.yaml", audio, folder / "alone", ENCODEC, 1, weights)
    own_cpu_s = sum(last_json(run("tests.bench.part_whole", "alone", stages, 0, 1)).values())
    codes = last_json(run("tests.bench.today", "encodec", weights, *files))
    cqt = last_json(run("tests.bench.today", "cqt", *files))
    today_s, today_cpu_s = codes["wall_s"] + cqt["wall_s"], codes["cpu_s"] + cqt["cpu_s"]
    ratio = today_s / ours["work_s"]
    return [
        Row(
            f"whole chain with EnCodec against today's two scripts, {total / 60:.1f} min",
            f"{ratio:.2f}× ({total / ours['work_s']:.1f} against {total / today_s:.1f} audio-s/s; from Ray "
            f"up {today_s / ours['wall_s']:.2f}×; in CPU seconds {today_cpu_s / own_cpu_s:.2f}×: stages "
            f"alone {own_cpu_s:.1f}, encodec {codes['cpu_s']:.1f} + nnAudio {cqt['cpu_s']:.1f}; others took "
            f"{ours['others_s'] / ours['wall_s']:.2f} and "
            f"{(codes['others_s'] + cqt['others_s']) / today_s:.2f} cores)",
            "≥ 2.5×",
            ratio >= 2.5,
        )
    ]


if __name__ == "__main__":
    os.environ.pop("RAY_ADDRESS", None)
    {"alone": alone, "chain": chain}[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
