"""Training without Ray: `torchrun --nproc-per-node N -m stages.pretrain CONFIG --set …`, or python for one
rank."""

import argparse
import os
import sys

from stages.pretrain import config
from stages.pretrain.loop import STOPPED, train

USER_ERROR, INTERRUPTED = 2, 130


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m stages.pretrain", description="Pre-train on labelled shards, one process a rank."
    )
    parser.add_argument("config", metavar="CONFIG", help="for example configs/pretrain/quickstart.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override one field, e.g. run.name=mine",
    )
    # the deepspeed launcher gives it; LOCAL_RANK is the same
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        outcome = train(config.load(arguments.config, arguments.set), lambda text: print(text, flush=True))
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"overtone: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    return INTERRUPTED if outcome == STOPPED else 0


if __name__ == "__main__":
    sys.exit(main())
