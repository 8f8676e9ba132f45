"""`overtone features` to a folder, a parquet or one safetensors file: the same values, whoever made them, and
what is there is not made again."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline import features as command
from pipeline.cli import main
from stages.evaluate import feature_files
from stages.evaluate.features import stored
from stages.shards.storage import Storage
from tests.stages.evaluate.conftest import write_run


@pytest.fixture
def music(tmp_path):
    folder = tmp_path / "music"
    draw = np.random.default_rng(0)
    for name, seconds in {"a.wav": 1.3, "inner/b.wav": 2.1, "inner/c.wav": 0.5, "d.wav": 2.1}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, draw.standard_normal(int(seconds * 24_000)) * 0.1, 24_000)
    return folder


@pytest.fixture
def made(tmp_path, music):
    """Runs the command on a model; counts what was decoded."""
    run, _ = write_run(tmp_path / "run", front_end="mel")

    def call(out: str, *options: str) -> int:
        return main(["features", str(run), str(music), "--out", str(tmp_path / out), *options])

    return call


def in_folder(folder: Path) -> dict[str, torch.Tensor]:
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*.safetensors")}
    return {name.removesuffix(".safetensors"): load_file(p)["features"] for name, p in files.items()}


def in_parquet(path: Path, music: Path) -> dict[str, torch.Tensor]:
    rows = pq.read_table(path).to_pylist()
    return {
        os.path.relpath(row["path"], music): torch.tensor(row["features"]).view(*row["shape"]) for row in rows
    }


def in_file(path: Path, music: Path) -> dict[str, torch.Tensor]:
    return {os.path.relpath(name, music): value for name, value in load_file(path).items()}


@pytest.mark.parametrize("pool, shape", [("none", (3, 157, 32)), ("mean", (3, 32)), ("mean_std", (3, 64))])
def test_every_place_and_any_number_of_processes_hold_the_same(tmp_path, music, made, pool, shape):
    options = ("--pool", pool, "--window-s", "0.8", "--overlap-s", "0.2")
    assert made("x.safetensors", *options) == 0
    assert made("x.parquet", *options, "--batch", "1") == 0
    assert made("folder/", *options, "--processes", "2", "--batch", "3") == 0
    expected = in_file(tmp_path / "x.safetensors", music)
    assert (
        set(expected) == {"a.wav", "inner/b.wav", "inner/c.wav", "d.wav"} and expected["d.wav"].shape == shape
    )
    for found in (in_parquet(tmp_path / "x.parquet", music), in_folder(tmp_path / "folder")):
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    assert {p.name for p in tmp_path.iterdir()} == {"music", "run", "x.safetensors", "x.parquet", "folder"}


def test_half_precision_halves_the_bytes(tmp_path, music, made):
    assert (
        made("x.safetensors")
        == made("y.safetensors", "--dtype", "fp16")
        == made("y.parquet", "--dtype", "fp16")
        == 0
    )
    whole, half = (in_file(tmp_path / f"{name}.safetensors", music) for name in "xy")
    assert half["a.wav"].dtype == torch.float16
    torch.testing.assert_close(half["a.wav"].float(), whole["a.wav"], rtol=1e-3, atol=1e-3)
    assert pq.read_schema(tmp_path / "y.parquet").field("features").type.value_type == "halffloat"
    assert torch.equal(in_parquet(tmp_path / "y.parquet", music)["a.wav"].half(), half["a.wav"])
    with pytest.raises(ValueError, match="values up to 7e\\+04 are more than fp16 holds: use --dtype fp32"):
        stored(torch.tensor([7e4]), "fp16")


def test_a_file_says_what_it_was_made_from(tmp_path, made):
    assert made("x.safetensors", "--layer", "1", "--pool", "mean") == made("folder/") == 0
    about = safe_open(tmp_path / "x.safetensors", "pt").metadata()
    assert about["layer"] == "1" and about["pool"] == "mean" and about["rate_hz"] == "75"
    assert about["model"] == str(tmp_path / "run")
    _, part = feature_files.header(Storage(tmp_path / "folder"), "inner/b.wav.safetensors")
    assert part["layer"] == "all" and part["weights"] == about["weights"] and len(part["audio"]) > 8


@pytest.mark.parametrize("out", ["folder/", "x.parquet"])
def test_what_is_there_is_not_made_again(tmp_path, music, made, monkeypatch, out):
    heard = []
    plain = command.features.windows
    monkeypatch.setattr(
        command.features, "windows", lambda name, *rest: heard.append(Path(name).name) or plain(name, *rest)
    )
    assert made(out) == 0 and sorted(heard) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    heard.clear()
    soundfile.write(music / "e.wav", np.zeros(24_000), 24_000)
    soundfile.write(music / "a.wav", np.zeros(12_000), 24_000)  # edited
    assert made(out) == 0 and sorted(heard) == ["a.wav", "e.wav"]
    heard.clear()
    assert made(out) == 0 and not heard
    assert made(out, "--layer", "1") == 0 and len(heard) == 5  # other choices
    found = in_folder(tmp_path / out) if out == "folder/" else in_parquet(tmp_path / out, music)
    assert len(found) == 5 and found["a.wav"].shape == (37, 32)


SLOWLY = """
import sys, time
from pipeline.cli import main
from stages.evaluate import feature_files
plain = feature_files.write
feature_files.write = lambda *given: (time.sleep(0.2), plain(*given))
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on(tmp_path, music, made, monkeypatch):
    for number in range(12):
        soundfile.write(music / f"{number}.wav", np.full(24_000 * 3, 0.01 * number), 24_000)

    parts = tmp_path / "x.parquet.parts"
    call = ["features", str(tmp_path / "run"), str(music), "--out", str(tmp_path / "x.parquet")]
    call += ["--batch", "1", "--pool", "mean"]
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *call])
    while not (parts.exists() and len(list(parts.glob("[!.]*"))) >= 3):
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    before = {p.name: p.stat().st_mtime_ns for p in parts.glob("[!.]*")}
    assert 3 <= len(before) < 16 and not (tmp_path / "x.parquet").exists()
    kept = []
    plain = feature_files.remove
    monkeypatch.setattr(
        feature_files,
        "remove",
        lambda where: (
            kept.extend((p.name, p.stat().st_mtime_ns) for p in parts.glob("[!.]*")),
            plain(where),
        ),
    )
    assert made("x.parquet", "--pool", "mean") == 0
    assert before.items() <= dict(kept).items() and len(kept) == 16
    assert len(in_parquet(tmp_path / "x.parquet", music)) == 16 and not parts.exists()


def test_a_dead_process_is_said(made, monkeypatch, capsys):
    monkeypatch.setattr(command, "_rank", _dies)
    assert made("folder/", "--processes", "2") == 2
    assert "a process of --processes 2 ended with 9" in capsys.readouterr().err


def _dies(*_) -> None:
    os._exit(9)


def test_two_files_of_one_name_are_refused(tmp_path, music, capsys):
    (music / "inner" / "a.wav").write_bytes((music / "a.wav").read_bytes())
    run, _ = write_run(tmp_path / "run2")
    call = ["features", str(run), str(music / "a.wav"), str(music / "inner"), "--out", str(tmp_path / "f/")]
    assert main(call) == 2 and "would both be a.wav.safetensors" in capsys.readouterr().err
    assert main([*call[:-1], str(tmp_path / "x.safetensors")]) == 0


def test_a_parquet_of_something_else_is_left_alone(tmp_path, music, made, capsys):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    assert made("x.parquet") == 2 and "a parquet of other columns is there" in capsys.readouterr().err
