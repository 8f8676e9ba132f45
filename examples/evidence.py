"""Experiments at equal compute, and the table of what each model knows: `make evidence`.

    python -m examples.evidence OUT --corpus data/mel_rvq --tasks probe-sets

Each experiment is configs/pretrain/small.yaml with some settings changed: equal crops and seed, so that the
same audio is heard. Runs go on where they were stopped; finished ones and their features are kept.
docs/evidence.md says what came out.
"""

import argparse
import subprocess
import sys
from pathlib import Path

CONFIG = "configs/pretrain/small.yaml"
AT_25_HZ = ("model.stack=3", "masking.span=13")  # the same half second as 40 frames at 75 Hz
EXPERIMENTS = {
    "75hz": (),  # three times the frames for the same audio: not equal compute, to compare with `base`
    "base": AT_25_HZ,
    "visible": (*AT_25_HZ, "objective.visible_weight=1"),
    "vector": (*AT_25_HZ, "model.masked_input=vector", "objective.cqt_start=default"),
    "codes": (*AT_25_HZ, "objective.cqt_weight=0"),
    "cqt": (*AT_25_HZ, "objective.codes_weight=0"),
    "visible-codes": (*AT_25_HZ, "objective.visible_weight=1", "objective.cqt_weight=0"),
    "visible-vector": (*AT_25_HZ, "objective.visible_weight=1", "model.masked_input=vector"),
    "short-spans": ("model.stack=3", "masking.span=4"),
    "wide-batch": (*AT_25_HZ, "optim.global_batch=32", "engine.micro_batch=32"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.evidence", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", required=True, help="OUT of `overtone labels`")
    parser.add_argument("--tasks", help="folder of the bundled tasks' audio; left out: no probes")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--crops", type=int, default=9600, help="heard by each run, of 5 s")
    parser.add_argument(
        "--set", dest="more", action="append", default=[], help="for every run, e.g. run.seed=1"
    )
    parser.add_argument("--probe", nargs="+", default=["linear"])
    given = parser.parse_args()
    for name in given.only:
        settings = list(EXPERIMENTS[name])
        batch = next((int(s.partition("=")[2]) for s in settings if s.startswith("optim.global_batch=")), 8)
        settings += [f"data.corpora=[{given.corpus}]", f"run.dir={given.out}", f"run.name={name}"]
        settings += [f"optim.updates={given.crops // batch}", "checkpoints.keep=100", *given.more]
        run = [sys.executable, "-m", "stages.pretrain", CONFIG]
        if code := subprocess.run(
            [*run, *(word for text in settings for word in ("--set", text))]
        ).returncode:
            return code
    if not given.tasks:
        return 0
    places = [str(given.out / name) for name in given.only]
    probe = [sys.executable, "-m", "pipeline", "probe", *places, "--tasks", given.tasks]
    probe += [
        "--out",
        str(given.out / "probe"),
        *(word for kind in given.probe for word in ("--probe", kind)),
    ]
    return subprocess.run(probe).returncode


if __name__ == "__main__":
    sys.exit(main())
