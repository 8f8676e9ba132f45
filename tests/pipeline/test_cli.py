"""What the command says and which code it ends with, when a user makes a mistake or stops it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile

from tests.chaos.processes import wait
from tests.conftest import ROOT, SMALL, command, tars

ENCODEC = ROOT / "configs" / "labels" / "encodec.yaml"
SECONDS = 30.0  # "within seconds": a busy machine of two cores takes some to import torch


@pytest.fixture
def refused(overtone):
    """Run a command that must be refused soon, in one line, with exit code 2; returns the line."""

    def run(*arguments, **environment) -> str:
        since = time.monotonic()
        done = overtone(*arguments, timeout=120, **environment)
        said = done.stderr.strip()
        assert done.returncode == 2, done.stdout + done.stderr
        assert time.monotonic() - since < SECONDS
        assert said.startswith("overtone: ") and "\n" not in said and "Traceback" not in done.stdout + said
        return said

    return run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "recipe.plan.shard_minuts=1",
            "recipe.plan.shard_minuts is no known key: did you mean 'shard_minutes'?",
        ),
        ("run.pools.decode.cpu=1", "did you mean 'cpus'?"),
        ("recipe.codes.teacher=mel-rvq", "did you mean 'mel_rvq'?"),
        ("recipe.plan.shard_minutes=long", "recipe.plan.shard_minutes is 'long' (str): expected a number"),
        ("recipe.plan.shard_minutes=-1", "recipe.plan.shard_minutes is -1: expected a number, above 0"),
        ("recipe.decode.segment_s=0.05", "recipe.decode.segment_s"),
        ("recipe.codes.codebooks=0", "recipe.codes.codebooks"),
        ("recipe.cqt.bins=0", "recipe.cqt.bins is 0"),
        ("run.stall_s=0", "run.stall_s is 0"),
        ("run.pools.decode.cpus=-1", "run.pools.decode.cpus is -1: expected a number, above 0"),
        ("run.pools.codes.gpus=-1", "run.pools.codes.gpus is -1: expected a number, 0 or more"),
        ("run.scan_workers=0", "run.scan_workers is 0"),
        ("run.max_rejected_share=5", "run.max_rejected_share is 5: expected a number, 0 to 1"),
        ("run.out=''", "run.out is '': an empty path"),
    ],
)
def test_a_config_that_cannot_be(small_config, refused, tmp_path, override, said):
    assert said in refused("labels", small_config, "--set", override)
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_not_there(refused, tmp_path):
    assert "none.yaml cannot be read: No such file" in refused(
        "labels", tmp_path / "none.yaml", "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_no_yaml(refused, tmp_path):
    (tmp_path / "broken.yaml").write_text("run: {}\nrecipe: {cqt: {}\n")
    assert "broken.yaml is not valid YAML: line " in refused("labels", tmp_path / "broken.yaml")
    assert "give a YAML file" in refused("labels", tmp_path)


@pytest.mark.parametrize("option", ["--audio", "--out"])
def test_an_empty_path_is_not_this_folder(small_config, refused, tmp_path, option):
    assert "an empty path" in refused("labels", small_config, option, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["labels", "fit-codes"])
def test_nothing_is_written_for_audio_that_is_not_there(small_config, refused, tmp_path, command):
    assert "'/no/such' cannot be read" in refused(
        command, small_config, "--audio", "/no/such", "--out", tmp_path / "new" / "out"
    )
    assert list(tmp_path.iterdir()) == [small_config]


def test_audio_that_is_not_there(small_config, refused, tmp_path):
    assert "'/music/none' cannot be read: No such file" in refused(
        "labels", small_config, "--audio", "/music/none"
    )
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "cover.jpg").touch()
    said = refused("labels", small_config, "--audio", tmp_path / "texts")
    assert "no audio files found under" in said and "(1 other files seen)" in said and "flac" in said
    said = refused("labels", small_config, "--set", 'run.exclude=["*"]')
    assert "0 other files and 10 that run.exclude leaves out seen" in said
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written(small_config, refused, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/overtone"):
        assert f"OUT {out} cannot be written" in refused("labels", small_config, "--out", out)
    assert {p.name for p in tmp_path.iterdir()} == {"file", small_config.name} and (
        tmp_path / "file"
    ).is_file()
    assert "only a local folder or s3://bucket/prefix" in refused(
        "labels", small_config, "--out", "gs://bucket/x"
    )


def test_a_ray_that_is_not_there(small_config, refused, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else can
        port = taken.getsockname()[1]
        said = refused("labels", small_config, RAY_ADDRESS=f"127.0.0.1:{port}")
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in said and "unset it" in said
    assert "expected HOST:PORT" in refused("labels", small_config, RAY_ADDRESS="nonsense")
    if not Path("/tmp/ray/ray_current_cluster").exists():
        assert "no Ray cluster was started" in refused("labels", small_config, RAY_ADDRESS="auto")
    assert not (tmp_path / "out").exists(), "known before the scan, said before the scan"


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
@pytest.mark.parametrize("stage", ["codes", "cqt"])
def test_a_gpu_that_is_not_there(small_config, refused, stage):
    assert "asks for a GPU" in refused("labels", small_config, "--set", f"run.pools.{stage}.gpus=1")


def test_encodec_without_weights_names_three_ways(refused, excerpts, tmp_path):
    """No internet here, or none by this proxy; and no other teacher steps in."""
    nowhere = {
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "TORCH_HOME": str(tmp_path / "hub"),
    }
    said = refused("labels", ENCODEC, "--audio", excerpts, "--out", tmp_path / "out", **nowhere)
    assert "run.weights=PATH" in said and str(tmp_path / "hub") in said and "download" in said
    assert not (tmp_path / "out").exists()
    junk = tmp_path / "weights.th"
    junk.write_bytes(b"not weights")
    said = refused(
        "labels", ENCODEC, "--audio", excerpts, "--out", tmp_path / "out", "--set", f"run.weights={junk}"
    )
    assert str(junk) in said and "saw 11 bytes" in said


def test_too_little_space(small_config, refused, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], capture_output=True
    ).returncode:
        pytest.skip("this user cannot mount")
    try:
        said = refused("labels", small_config, "--out", small / "out")
        assert "0.0 GiB free" not in said and "MiB free" in said and "free some space" in said
        longest = said.partition("some of the longest recordings: ")[2].split("; ")
        weights = [float(one.rpartition("(")[2].split(" h, ")[0]) for one in longest]
        assert len(longest) == 10 and weights == sorted(weights, reverse=True)
        assert all("/excerpts" in one and " MiB)" in one for one in longest)
        assert not (small / "out" / "columns").exists()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_dry_run_writes_nothing(small_config, overtone, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done = overtone("labels", small_config, "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in (
        "found       10",
        "recordings  10",
        "shards",
        "audio",
        "codes",
        "cqt",
        "free",
        "resources",
        "nothing is written",
    ):
        assert words in done.stdout
    done = overtone("labels", small_config, "--dry-run", "--plain", RAY_ADDRESS="nowhere:1")
    assert done.returncode == 0 and "resources   processes on this machine, " in done.stdout, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["status"], ["verify"], ["merge", "--to", "merged"]])
def test_an_out_that_is_none(refused, tmp_path, arguments):
    name, *rest = arguments
    for place in (tmp_path, tmp_path / "none"):
        assert "give the OUT of a `labels` run" in refused(name, place, *rest)


def test_an_out_without_labels_yet(refused, tmp_path):
    (tmp_path / "catalog.parquet").touch()
    assert "holds no labels yet" in refused("verify", tmp_path)


@pytest.fixture
def copied(labelled, excerpts, tmp_path) -> tuple[Path, Path]:
    """(config, OUT) of a finished labelling."""
    config, out = tmp_path / "copied.yaml", tmp_path / "copied"
    shutil.copytree(labelled, out)
    config.write_text(SMALL.format(audio=json.dumps(str(excerpts)), out=json.dumps(str(out))))
    return config, out


def written(out: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in out.glob("columns/*/*") if p.is_file()}


def segments(out: Path) -> list[dict]:
    return sorted(pq.read_table(out / "segments.parquet").to_pylist(), key=lambda row: row["key"])


def test_shards_cannot_change_their_length(copied, refused):
    config, out = copied
    before = written(out)
    said = refused("labels", config, "--set", "recipe.plan.shard_minutes=7")
    assert "recipe.plan.shard_minutes is 7" in said and "0.4" in said and "another OUT" in said
    assert written(out) == before


def test_nothing_to_do_is_done_in_seconds(copied, overtone):
    config, out = copied
    before, since = written(out), time.monotonic()
    done = overtone("labels", config)
    assert done.returncode == 0 and "10 found = 10 kept" in done.stdout
    assert written(out) == before and time.monotonic() - since < SECONDS


@pytest.mark.slow
def test_another_recipe_makes_other_columns_beside_the_old(copied, labelled, overtone):
    config, out = copied
    before, shas, names = written(out), tars(out), {p.name for p in (out / "columns").iterdir()}
    done = overtone("labels", config, "--set", "recipe.cqt.bins=168")
    assert done.returncode == 0, done.stdout + done.stderr
    assert before == {p: t for p, t in written(out).items() if p in before}, "an unchanged stage ran again"
    assert shas == {k: v for k, v in tars(out).items() if k in shas}
    [new] = {p.name for p in (out / "columns").iterdir()} - names
    assert new.startswith("cqt-") and len(list((out / "columns" / new).glob("*.tar"))) == len(shas) // 3
    assert overtone("verify", out).returncode == 0
    assert segments(out) != segments(labelled)
    since = written(out)
    done = overtone("labels", config)
    assert done.returncode == 0 and written(out) == since, "back to the first recipe: all of it is there"
    assert segments(out) == segments(labelled), "the statistics must be those of the recipe in use"


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [(), pytest.param(("--plain",), marks=pytest.mark.slow)], ids=["ray", "plain"]
)
def test_one_run_at_a_time_and_ctrl_c(small_config, labelled, overtone, refused, tmp_path, how):
    out = tmp_path / "out"
    argv, options = command("labels", str(small_config), *how)
    with open(tmp_path / "said", "w+") as said:
        first = subprocess.Popen(
            argv, **options, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        while not list(out.glob("columns/*/*.json")):
            assert first.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        assert f"process {first.pid} on" in refused("labels", small_config)
        assert f"process {first.pid} on" in refused("fit-codes", small_config)
        assert first.poll() is None, "it ended before it could be stopped"
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does: the driver and all it started
        assert first.wait(60) == 130
    text = (tmp_path / "said").read_text()
    assert "stopped; what is finished is kept" in text and "Traceback" not in text
    finished = tars(out)
    assert finished and len(finished) < len(tars(labelled))
    done = overtone("labels", small_config, *how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished == {k: v for k, v in tars(out).items() if k in finished}
    assert tars(out) == tars(labelled)
    assert not list(out.rglob(".attempt-*"))


@pytest.mark.slow
def test_a_folder_of_which_nothing_can_be_used(small_config, overtone, tmp_path):
    """Every shard is empty: still no traceback, and the reasons are told."""
    for number in range(3):
        place = tmp_path / "music" / f"{number}.wav"
        place.parent.mkdir(exist_ok=True)
        soundfile.write(place, [0.1 * number] * (number + 1), 44_100)
    done = overtone("labels", small_config, "--audio", tmp_path / "music", "--set", "recipe.codes=null")
    assert done.returncode == 1 and "3 found = 0 kept + 3 rejected" in done.stdout, done.stdout + done.stderr
    assert "shorter than one label frame" in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert overtone("verify", tmp_path / "out").returncode == 0
    done = overtone("labels", small_config, "--audio", tmp_path / "music")
    assert done.returncode != 0 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "nothing to fit mel_rvq on: all 3 recordings" in done.stderr and "label frame" in done.stderr


def test_an_out_that_is_deleted_while_a_run_works_on_it(small_config, tmp_path):
    """Moved first: one step, whatever the workers write meanwhile."""
    out, log = tmp_path / "out", tmp_path / "out" / "log.jsonl"
    argv, options = command("labels", str(small_config))
    run = subprocess.Popen(argv, **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert wait(lambda: log.exists() and '"shard-begin"' in log.read_text(), run), run.communicate()
        out.rename(tmp_path / "deleted")
        shutil.rmtree(tmp_path / "deleted", ignore_errors=True)
        _, said = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 1
    assert (
        said.strip().startswith(f"overtone: OUT {out} was deleted or moved")
        and len(said.strip().splitlines()) == 1
    ), said
    assert not out.exists()
