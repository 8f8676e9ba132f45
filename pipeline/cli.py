"""The `overtone` command: labels, status, verify, merge, fit-codes."""

import argparse
import json
import signal
import sys

USER_ERROR, INTERRUPTED = 2, 130


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done; 1 something is unfinished, damaged or too much was rejected; 2 a mistake the
    user can mend, said in one sentence; 130 stopped by Ctrl-C."""
    arguments = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return arguments.run(arguments)
    except ValueError as error:
        print(f"overtone: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(
            "\novertone: stopped; what is finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except OSError as error:
        print(f"overtone: {error}", file=sys.stderr)
        return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="overtone", description="A folder of music becomes labelled shards for pre-training."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    labels = commands.add_parser("labels", help="label a folder of music; goes on where it was stopped")
    _config(labels)
    labels.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    labels.add_argument(
        "--retry-rejected",
        metavar="REASON",
        help="try rejected files whose reason contains this text again (all: every one)",
    )
    labels.add_argument(
        "--refit", action="store_true", help="fit the teacher anew, on shards spread over the whole plan"
    )
    labels.set_defaults(run=_labels)

    fit = commands.add_parser(
        "fit-codes", help="decode what a fit needs and fit the teacher, without labelling"
    )
    _config(fit)
    fit.add_argument("--refit", action="store_true", help="fit anew, on shards spread over the whole plan")
    fit.set_defaults(run=_fit)

    train = commands.add_parser("train", help="pre-train on labelled shards; goes on where it was stopped")
    train.add_argument("config", metavar="CONFIG", help="for example configs/pretrain/quickstart.yaml")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override one field, e.g. run.name=mine",
    )
    train.set_defaults(run=_train)

    status = commands.add_parser("status", help="what is finished in an OUT, or where a training RUN stands")
    status.add_argument("out", metavar="OUT|RUN")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)

    stats = commands.add_parser(
        "stats", help="look at an OUT or a training run: terminal and page; compare several"
    )
    stats.add_argument("places", metavar="OUT|RUN", nargs="+")
    stats.add_argument("--json", action="store_true", help="the numbers as JSON; no page")
    stats.add_argument("--shard", metavar="NAME", help="one shard")
    stats.add_argument(
        "--recording", metavar="PATH", help="one recording, by its path, the end of it, or its id"
    )
    stats.add_argument(
        "--where", metavar="SQL", help='the segments of which this holds, e.g. "rms_db < -50" (DuckDB SQL)'
    )
    stats.add_argument("--no-page", action="store_true", help="only the terminal")
    stats.set_defaults(run=_stats)

    verify = commands.add_parser("verify", help="read every finished shard back and name the damaged ones")
    verify.add_argument("out", metavar="OUT")
    verify.add_argument(
        "--repair", action="store_true", help="send damaged shards back; the next `labels` makes them again"
    )
    verify.set_defaults(run=_verify)

    merge = commands.add_parser("merge", help="write ordinary webdataset tars that hold all columns")
    merge.add_argument("out", metavar="OUT")
    merge.add_argument(
        "--to", required=True, metavar="DIR", help="folder or s3:// prefix for the merged tars"
    )
    merge.add_argument("--columns", metavar="NAME,…", help="columns to join (default: the current ones)")
    merge.add_argument("--split", choices=("train", "valid"), help="only this part of the recordings")
    merge.set_defaults(run=_merge)
    _evaluation(commands)
    return top


def _evaluation(commands: argparse._SubParsersAction) -> None:
    """What is done with a trained model."""
    export = commands.add_parser("export", help="write a training run's encoder as a Hugging Face folder")
    export.add_argument("place", metavar="RUN")
    export.add_argument("--out", required=True, metavar="DIR", help="folder or s3:// prefix")
    export.add_argument(
        "--checkpoint",
        default="latest",
        metavar="NAME",
        help="latest (default), best, or a folder below RUN/checkpoints",
    )
    export.set_defaults(run=_export)

    features = commands.add_parser(
        "features", help="representations of audio files, by a trained or an exported model"
    )
    features.add_argument("place", metavar="DIR", help="a training RUN, or a folder in Hugging Face's layout")
    features.add_argument("audio", metavar="AUDIO", nargs="+", help="files, or folders of files")
    features.add_argument(
        "--layer",
        default="all",
        metavar="all|N",
        help="one hidden state: 0 is the input embedding, N layer N's output",
    )
    features.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="for example x.safetensors; one tensor a file, by its path",
    )
    features.add_argument(
        "--batch", type=int, default=8, metavar="N", help="windows of 30 s at once (default 8)"
    )
    features.add_argument("--device", help="cpu, cuda, … (default: cuda where there is one)")
    features.add_argument(
        "--checkpoint",
        default="latest",
        metavar="NAME",
        help="of a RUN: latest (default), best, or a folder's name",
    )
    features.set_defaults(run=_features)


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="for example configs/labels/quickstart.yaml")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override one field, e.g. run.out=data/mine",
    )
    command.add_argument(
        "--audio", action="append", default=[], metavar="PATH", help="audio root; instead of run.audio"
    )
    command.add_argument("--out", metavar="OUT", help="instead of run.out")


def _load(arguments: argparse.Namespace):
    from stages.label import recipe

    overrides = list(arguments.set)
    if arguments.audio:
        overrides.append(f"run.audio={json.dumps(arguments.audio)}")
    if arguments.out is not None:
        overrides.append(f"run.out={json.dumps(arguments.out)}")
    return recipe.load(arguments.config, overrides)


def _labels(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    if arguments.dry_run:
        from pipeline.labelling.dry_run import describe

        print(describe(config))
        return 0
    from pipeline.labels import LabelOptions, label

    outcome = label(config, LabelOptions(arguments.retry_rejected, arguments.refit))
    print(outcome.text)
    return outcome.code


def _fit(arguments: argparse.Namespace) -> int:
    from pipeline.labels import LabelOptions, fit_only

    print(fit_only(_load(arguments), LabelOptions(refit=arguments.refit)))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from pipeline.pretrain import pretrain
    from stages.pretrain import config

    return pretrain(config.load(arguments.config, arguments.set))


def _status(arguments: argparse.Namespace) -> int:
    from pipeline.status import status

    found, text = status(arguments.out)
    print(json.dumps(found, indent=1) if arguments.json else text)
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from pipeline.stats import StatsQuery, stats

    return stats(
        StatsQuery(
            tuple(arguments.places),
            arguments.json,
            arguments.shard,
            arguments.recording,
            arguments.where,
            not arguments.no_page,
        )
    )


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.verify import verify

    return verify(arguments.out, arguments.repair)


def _merge(arguments: argparse.Namespace) -> int:
    from pipeline.merge import merge

    columns = tuple(arguments.columns.split(",")) if arguments.columns else None
    print(merge(arguments.out, arguments.to, columns, arguments.split))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from pipeline.export import export

    print(export(arguments.place, arguments.out, arguments.checkpoint))
    return 0


def _features(arguments: argparse.Namespace) -> int:
    from pipeline.features import extract

    asked = arguments
    return extract(
        asked.place, asked.audio, asked.layer, asked.out, max(1, asked.batch), asked.device, asked.checkpoint
    )
