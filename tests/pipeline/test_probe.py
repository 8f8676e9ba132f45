"""`overtone probe`: from audio files and a RUN to a table; what was computed once is not computed again."""

import json
import os

import numpy as np
import pytest
import soundfile

from pipeline import probe as module
from pipeline.cli import main
from stages.evaluate.probe import heads
from stages.evaluate.probe.task import Item, write
from tests.stages.evaluate.conftest import write_run

NOTES = {"low": 220.0, "high": 1760.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(heads, "RATES", (1e-2, 1e-3))
    monkeypatch.setattr(heads, "EPOCHS", 10)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A folder of tones, and lists of two tasks: which of two octaves, and clicks as beats."""
    root = tmp_path_factory.mktemp("sounds")
    (root / "audio").mkdir()
    (root / "lists").mkdir()
    random, items = np.random.default_rng(0), []
    for number in range(30):
        name, hz = list(NOTES.items())[number % 2]
        time = np.arange(12_000) / 24_000
        tone = 0.3 * np.sin(2 * np.pi * hz * (1 + 0.05 * random.random()) * time)
        soundfile.write(root / "audio" / f"{number}.wav", tone + random.normal(0, 0.01, len(time)), 24_000)
        items.append(Item(f"{number}.wav", None, None, f"g{number // 2}", str(number // 2 % 3), name))
    write(root / "lists" / "octave.csv", items)
    songs = []
    for song in range(3):
        wave = random.normal(0, 0.001, 24_000 * 12)
        times = np.arange(0.3 + 0.1 * song, 12, 0.6)
        for at in times:
            wave[round(at * 24_000) :][:480] += random.normal(0, 0.5, 480)[: len(wave) - round(at * 24_000)]
        soundfile.write(root / "audio" / f"song{song}.wav", wave, 24_000)
        songs.append(
            Item(f"song{song}.wav", None, None, f"s{song}", str(song), " ".join(f"{t:.2f}" for t in times))
        )
    write(root / "lists" / "beats.csv", songs)
    return root


@pytest.fixture
def lists(sounds, monkeypatch):
    monkeypatch.setattr(module, "BUNDLED", sounds / "lists")
    return sounds


def asked(sounds, *more):
    return ["probe", *more[:1], "--tasks", str(sounds / "audio"), *more[1:]]


def test_a_run_is_probed_beside_spectra(lists, tmp_path, capsys):
    run, _ = write_run(tmp_path / "run", front_end="mel")
    cache = tmp_path / "cache"
    assert main(asked(lists, str(run), "--cache", str(cache))) == 0
    shown = capsys.readouterr().out
    assert "log-mel" in shown and "untrained" in shown and "run is ahead of" in shown
    results = json.loads((run / "probe" / "results.json").read_text())
    scores = {
        (r["task"], r["encoder"]): r["score"]
        for r in results
        if (r["probe"], r["layer"]) == ("linear", "best") and r["pooling"] in ("mean", "frames")
    }
    assert len(scores) == 12
    assert scores["octave", "log-mel"] > 0.9 and scores["octave", "MFCC"] > 0.9
    assert scores["beats", "log-mel"] > 0.9  # a click is heard in one frame
    text = (run / "probe" / "table.md").read_text()
    assert "| octave (30 of 15) | accuracy | mean |" in text and "layer by layer" in text

    # again: nothing is decoded, nothing trained, the same table
    parts = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert main(asked(lists, str(run), "--cache", str(cache))) == 0
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == parts
    assert (run / "probe" / "table.md").read_text() == text

    # one audio file is another one now: only its part is computed again
    changed = lists / "audio" / "0.wav"
    os.utime(changed, ns=(1, 1))
    assert main(asked(lists, str(run), "--cache", str(cache), "--task", "octave")) == 0
    new = [path for path in cache.rglob("*.safetensors") if path not in parts]
    assert len(new) == 6


def test_every_checkpoint_of_a_run(lists, tmp_path):
    run, _ = write_run(tmp_path / "run", front_end="mel")
    more = (str(run), "--cache", str(tmp_path / "cache"), "--task", "octave", "--no-spectra", "--during")
    assert main([*asked(lists, *more), "--probe", "linear"]) == 0
    results = json.loads((run / "probe" / "results.json").read_text())
    assert {r["encoder"] for r in results} == {"untrained", "update 1", "update 2"}
    assert (run / "probe" / "during.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "more, words",
    [
        (("--task", "nonsense"), "--task nonsense: expected one of beats, octave"),
        (("--probe", "svm"), "--probe svm: expected one of linear, knn, mlp"),
        (("--set", "gtzan"), "--set gtzan: expected NAME=DIR"),
        (("--set", "other=/x"), "--set other=/x: expected NAME=DIR"),
    ],
)
def test_wrong_options_are_named(lists, tmp_path, capsys, more, words):
    run, _ = write_run(tmp_path / "run", front_end="mel")
    assert main(asked(lists, str(run), *more)) == 2
    assert words in capsys.readouterr().err


def test_what_is_not_there_is_named(lists, tmp_path, capsys):
    run, _ = write_run(tmp_path / "run", front_end="mel")
    assert main(["probe", str(run), "--tasks", str(tmp_path)]) == 2
    assert "files are not below" in capsys.readouterr().err
    assert main(["probe", str(run)]) == 2
    assert "no task: give --tasks DIR" in capsys.readouterr().err
    assert main(asked(lists, str(tmp_path / "none"))) == 2
    assert "has neither config.yaml" in capsys.readouterr().err
    assert main(asked(lists, str(lists / "audio"), "--during")) == 2
    assert "is not one training RUN" in capsys.readouterr().err


def test_a_file_that_cannot_be_decoded_stops_the_probe(lists, tmp_path, capsys):
    run, _ = write_run(tmp_path / "run", front_end="mel")
    (tmp_path / "lists").mkdir()
    items = [Item(f"{side}.wav", None, None, side, side, "x") for side in ("train", "valid", "test")]
    write(tmp_path / "lists" / "toy.csv", items)
    for item in items:
        (tmp_path / item.audio).write_bytes(b"no sound at all")
    call = ["probe", str(run), "--tasks", str(tmp_path), "--lists", str(tmp_path / "lists")]
    assert main(call) == 2
    assert "train.wav cannot be decoded" in capsys.readouterr().err


def test_a_damaged_part_is_named_and_made_again(lists, tmp_path, capsys):
    run, _ = write_run(tmp_path / "run", front_end="mel")
    cache = tmp_path / "cache"
    call = asked(
        lists, str(run), "--cache", str(cache), "--task", "octave", "--no-spectra", "--probe", "linear"
    )
    assert main(call) == 0
    for path in cache.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    for path in (cache / "results").iterdir():
        path.unlink()
    assert main(call) == 2
    assert "is damaged" in capsys.readouterr().err
    while (code := main(call)) == 2:
        pass
    assert code == 0


def test_models_of_one_name_and_their_untrained_ones_are_told_apart(lists, tmp_path):
    """Two runs in folders called alike, one at half the frame rate: four encoders, not two."""
    places = [
        str(write_run(tmp_path / name / "run", front_end="mel", stack=k)[0])
        for name, k in (("a", 1), ("b", 2))
    ]
    names = [encoder.name for encoder in module.opened(places, "latest", "cpu")]
    assert names == [places[0], f"untrained {places[0]}", places[1], f"untrained {places[1]}"]
    same = [encoder.name for encoder in module.opened(places[:1], "latest", "cpu")]
    assert same == ["run", "untrained"]
