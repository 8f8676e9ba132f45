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
# one teacher alone, or both: no musical targets
TEACHERS = ("objective.musical=[]",)
CODES = (*TEACHERS, "objective.cqt_weight=0")
# six layers of 256 on the CQT, and the recipe's two losses on masked frames alone
NARROW = ("model.front_end=cqt", "model.layers=6", "model.width=256", "model.ffn=1024", "model.heads=4")
BASE = (*NARROW, "objective.visible_weight=0", "objective.musical=[]")
VISIBLE = (*NARROW, "objective.musical=[]")
EXPERIMENTS = {
    "small": (),  # as the file: mel and CQT, wide, visible frames, musical targets
    "no-codes": ("objective.codes_weight=0",),
    "no-cqt": ("objective.cqt_weight=0",),  # but the musical targets, which are made from it
    "cqt-front": ("model.front_end=cqt",),
    "codes-and-cqt": TEACHERS,
    "cqt-alone": (*TEACHERS, "objective.codes_weight=0"),
    "mel-rvq": CODES,
    "best-rq": CODES,  # this and the next: --corpus labelled with configs/labels/best_rq.yaml, kmeans.yaml
    "kmeans": CODES,
    "base": BASE,
    "visible": VISIBLE,
    "musical": NARROW,
    "codes": (*BASE, "objective.cqt_weight=0"),
    "cqt": (*BASE, "objective.codes_weight=0"),
    "vector": (*BASE, "model.masked_input=vector", "objective.cqt_start=default"),
    "visible-codes": (*VISIBLE, "objective.cqt_weight=0"),
    "musical-heavy": (*NARROW, "objective.musical_weight=10", "objective.cqt_weight=2"),
    "short-spans": (*BASE, "masking.span=4"),
    "wide-batch": (*BASE, "optim.global_batch=32", "engine.micro_batch=32"),
    # three times the frames for the same audio: not equal compute, to compare with `base`
    "75hz": (*BASE, "model.stack=1", "masking.span=40"),
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
