"""The commands of `overtone`. One imports what it needs when it runs: `--help` takes no seconds."""

import functools
import json
import os
from collections.abc import Callable

import click

DEBUG = "OVERTONE_DEBUG"  # read by cluster/pools.py and cluster/__init__.py
SECTIONS = {
    "Labels": ("labels", "fit-codes", "verify", "merge"),
    "Training": ("train",),
    "Looking": ("status", "stats", "doctor"),
    "Using a model": ("probe", "export", "features"),
}
EPILOG = """\b
Completion for bash (for zsh and fish: zsh_source, fish_source):
  eval "$(_OVERTONE_COMPLETE=bash_source overtone)"
"""


def _debug(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ[DEBUG] = "1"


DEBUG_OPTION = click.Option(["--debug"], is_flag=True, expose_value=False, callback=_debug)
DEBUG_OPTION.help = "show tracebacks, and the logs of Ray and its workers"


class Commands(click.Group):
    """Help in sections; every command takes --debug, as the top one does."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(DEBUG_OPTION)
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(n, self.commands[n].get_short_help_str(90)) for n in names])


@click.group(
    cls=Commands,
    params=[DEBUG_OPTION],
    epilog=EPILOG,
    context_settings=dict(help_option_names=["-h", "--help"], max_content_width=110, show_default=True),
)
@click.version_option(package_name="overtone", message="overtone %(version)s")
def top() -> None:
    """A folder of music becomes labelled shards, and these a pre-trained model."""


def overrides(example: str) -> Callable:
    text = f"override one field, e.g. {example}"
    return click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help=text)


as_json = click.option("--json", "as_json", is_flag=True, help="as JSON")


def labels_config(function: Callable) -> Callable:
    @click.argument("config", metavar="CONFIG")
    @overrides("run.out=data/mine")
    @click.option("--audio", multiple=True, metavar="PATH", help="audio root; instead of run.audio")
    @click.option("--out", metavar="OUT", help="instead of run.out")
    @click.option("--refit", is_flag=True, help="fit the teacher again, on shards spread over the whole plan")
    @click.option("--plain", is_flag=True, help="in processes of this machine, without Ray; the same bytes")
    @functools.wraps(function)
    def loaded(config: str, overrides: tuple[str, ...], audio: tuple[str, ...], out: str | None, **options):
        from stages.label import recipe

        given = [f"run.audio={json.dumps(audio)}"] if audio else []
        given += [f"run.out={json.dumps(out)}"] if out is not None else []
        return function(recipe.load(config, [*overrides, *given]), **options)

    return loaded


@top.command("labels")
@labels_config
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="only the first N shards of the plan, to look at"
)
@click.option(
    "--shards",
    metavar="K/N",
    help="only every N-th shard of the plan that is there, from the K-th on: for Slurm's arrays",
)
@click.option("--finish", is_flag=True, help="label nothing, write the tables of what --shards finished")
@click.option("--dry-run", is_flag=True, help="print the plan and write nothing")
@click.option(
    "--retry-rejected",
    metavar="REASON",
    help="try rejected files whose reason contains this text again (all: every one)",
)
@click.option("--explain", metavar="PATH", help="try one file, say what would happen to it and why")
def labels(config, dry_run: bool, explain: str | None, **options) -> int:
    """Label a folder of music; continues where it was stopped.

    CONFIG is a YAML file, for example configs/labels/quickstart.yaml.
    """
    if explain is not None or dry_run:
        from pipeline.labelling.dry_run import describe
        from pipeline.labelling.explain import explained

        print(describe(config, options["plain"]) if explain is None else explained(config, explain))
        return 0
    from pipeline.labels import LabelOptions, label

    outcome = label(config, LabelOptions(**options))
    print(outcome.text)
    return outcome.code


@top.command("fit-codes")
@labels_config
def fit_codes(config, **options) -> None:
    """Decode what a fit needs and fit the teacher, without labelling.

    CONFIG is a YAML file, for example configs/labels/mel_rvq.yaml.
    """
    from pipeline.labels import LabelOptions, fit_only

    print(fit_only(config, LabelOptions(**options)))


@top.command("train")
@click.argument("config", metavar="CONFIG")
@overrides("run.name=mine")
def train(config: str, overrides: tuple[str, ...]) -> int:
    """Pre-train on labelled shards; continues where it was stopped.

    CONFIG is a YAML file, for example configs/pretrain/quickstart.yaml.
    """
    from pipeline.pretrain import pretrain
    from stages.pretrain.config import load

    return pretrain(load(config, overrides))


@top.command("status")
@click.argument("out", metavar="OUT|RUN")
@as_json
@click.option(
    "--watch",
    is_flag=False,
    flag_value=10.0,
    type=click.FloatRange(0.1),
    metavar="[SECONDS]",
    help="what the labels run of OUT is doing, again every so many seconds (10)",
)
def status(out: str, as_json: bool, watch: float | None) -> None:
    """Show what is finished in an OUT, or how far a training RUN is."""
    if watch is not None:
        from pipeline.watching import watch as again

        return again(out, watch)
    from pipeline.status import status

    found, text = status(out)
    print(json.dumps(found, indent=1) if as_json else text)


@top.command("stats")
@click.argument("places", metavar="OUT|RUN...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="the numbers as JSON; no page")
@click.option("--shard", metavar="NAME", help="one shard")
@click.option("--recording", metavar="PATH", help="one recording, by its path, the end of it, or its id")
@click.option(
    "--where", metavar="SQL", help='the segments of which this holds, e.g. "rms_db < -50" (DuckDB SQL)'
)
@click.option("--no-page", is_flag=True, help="only the terminal")
def stats(no_page: bool, **query) -> int:
    """Look at an OUT or a training run: terminal and page; compare several."""
    from pipeline.stats import stats

    return stats(**query, page=not no_page)


@top.command("doctor")
@click.option("--s3", metavar="s3://BUCKET", help="also list this bucket or prefix")
@as_json
def doctor(**options) -> int:
    """Check what labels and training need here: packages, GPU, disk, S3, Ray."""
    from pipeline.doctor import doctor

    return doctor(**options)


@top.command("verify")
@click.argument("out", metavar="OUT")
@click.option("--repair", is_flag=True, help="send damaged shards back; the next `labels` makes them again")
def verify(out: str, repair: bool) -> int:
    """Read every finished shard back and name the damaged ones."""
    from pipeline.verify import verify

    return verify(out, repair)


@top.command("merge")
@click.argument("out", metavar="OUT")
@click.option("--to", required=True, metavar="DIR", help="folder or s3:// prefix for the merged tars")
@click.option("--columns", metavar="NAME,…", help="columns to join", show_default="the current ones")
@click.option("--split", type=click.Choice(["train", "valid"]), help="only this part of the recordings")
def merge(out: str, to: str, columns: str | None, split: str | None) -> None:
    """Write ordinary webdataset tars that hold all columns."""
    from pipeline.merge import merge

    print(merge(out, to, tuple(columns.split(",")) if columns else None, split))


checkpoint = click.option(
    "--checkpoint",
    default="latest",
    metavar="NAME",
    help="of a RUN: latest, best, or a folder below RUN/checkpoints",
)


@top.command("probe")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--tasks", metavar="DIR", help="audio of the bundled tasks, as `make probe-sets` brings it")
@click.option(
    "--lists", metavar="DIR", help="CSV files of tasks of your own", show_default="the bundled ones"
)
@click.option("--task", "only", multiple=True, metavar="NAME", help="one of them, or of a public set")
@click.option("--set", "sets", multiple=True, metavar="NAME=DIR", help="a public set, e.g. gtzan=/data/GTZAN")
@click.option("--probe", "probes", multiple=True, metavar="KIND", help="linear, knn, mlp", show_default="all")
@click.option("--spectra/--no-spectra", default=True, help="log-mel, CQT, chroma and MFCC beside the models")
@click.option("--during", is_flag=True, help="every checkpoint of one RUN; draws scores beside the loss")
@click.option("--out", metavar="DIR", help="where the table goes", show_default="MODEL/probe")
@click.option("--cache", metavar="DIR", help="of features and results", show_default="features in --tasks")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, …", show_default="cuda where there is one")
@checkpoint
def probe(models: tuple[str, ...], **options) -> int:
    """Measure what a frozen model knows of music, beside plain spectra and the same model untrained.

    MODEL is a training RUN, or a folder of a HuBERT or MERT model. See docs/probes.md.
    """
    from pipeline.probe import ProbeOptions, probe

    return probe(models, ProbeOptions(**options))


@top.command("export")
@click.argument("place", metavar="RUN")
@click.option("--out", required=True, metavar="DIR", help="folder or s3:// prefix")
@checkpoint
def export(**options) -> None:
    """Write a training run's encoder as a Hugging Face folder."""
    from pipeline.export import export

    print(export(**options))


@top.command("features")
@click.argument("place", metavar="DIR")
@click.argument("audio", metavar="AUDIO...", nargs=-1, required=True)
@click.option("--layer", default="all", metavar="all|N", help="0 is the input embedding, N layer N's output")
@click.option("--pool", default="none", metavar="none|mean|mean_std", help="over a recording's frames")
@click.option("--out", required=True, metavar="PLACE", help="x.safetensors, x.parquet, or folder/")
@click.option("--dtype", default="fp32", metavar="fp32|fp16", help="of what is written")
@click.option("--window-s", type=float, default=30.0, metavar="S", help="seconds heard at once")
@click.option("--overlap-s", type=float, default=0.0, metavar="S", help="seconds that neighbours share")
@click.option("--batch", type=int, default=8, metavar="N", help="windows at once")
@click.option("--processes", type=click.IntRange(1), default=1, metavar="N", help="each with a GPU, or CPUs")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, …", show_default="cuda where there is one")
@checkpoint
def features(batch: int, **options) -> int:
    """Write representations of audio files; continues where it was stopped.

    DIR is a training RUN, or a folder in Hugging Face's layout; AUDIO are files, or folders of files.
    """
    from pipeline.features import extract

    return extract(**options, batch=max(1, batch))
