"""`--debug`: the traceback behind a sentence, and what Ray and its workers write."""

import os
import subprocess
import sys

import pytest

from pipeline.cli import main
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def debug_is_put_back(monkeypatch):
    monkeypatch.setenv("OVERTONE_DEBUG", "")


@pytest.mark.parametrize("arguments", [["--debug", "status"], ["status", "--debug"]])
def test_the_traceback_and_what_it_hides(monkeypatch, capsys, arguments):
    def status(out: str):
        try:
            raise KeyError("the reason")
        except KeyError:
            raise ValueError("the sentence") from None

    monkeypatch.setattr("pipeline.status.status", status)
    assert main(["status", "x"]) == 2
    assert capsys.readouterr().err == "overtone: the sentence\n"
    assert main([*arguments, "x"]) == 2
    text = capsys.readouterr().err
    assert text.endswith("\novertone: the sentence\n") and text.count("Traceback") == 2
    assert "KeyError: 'the reason'" in text and "in status" in text


def test_a_mistake_of_the_command_line_has_one_too(capsys):
    assert main(["--debug", "labels"]) == 2
    text = capsys.readouterr().err
    assert "MissingParameter" in text and text.endswith("see overtone labels --help\n")


WORK = """
from cluster.session import session
from cluster.sharded import run_one_reporting, run_chain, StageSpec

def work(report):
    print("a worker's own words")
    return 7

def make():
    def one(shard):
        print("an actor's own words")
        return {"shard": shard, "stage": "decode", "status": "done"}
    return one

with session(2) as ray_session:
    assert run_one_reporting(work, print, cpus=1) == 7
    assert [row["shard"] for row in run_chain([StageSpec("decode", make)], ["s1"], ray_session)] == ["s1"]
    import time; time.sleep(1)
"""


@pytest.mark.parametrize("debug", ["", "1"])
def test_the_logs_of_ray_and_its_workers(debug):
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_BACKEND_LOG_LEVEL")}
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        cwd=ROOT,
        env=environment | {"OVERTONE_DEBUG": debug},
        capture_output=True,
        text=True,
        timeout=120,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    for words in ("a worker's own words", "an actor's own words", "Started a local Ray instance"):
        assert (words in text) == bool(debug), text
