"""Shared by the tests: real music, cut small, and a way to run the real command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.excerpt import PIECES

ROOT = Path(__file__).resolve().parent.parent

# A teacher and shards small enough for seconds; everything else is as users have it.
SMALL = """
recipe:
  plan: {{shard_minutes: 0.4, validation_share: 0.1}}
  decode: {{segment_s: 8}}
  codes: {{teacher: mel_rvq, codebooks: 3, codebook_size: 64, dim: 8, steps: 40, batch: 256, fit_minutes: 1}}
  cqt: {{}}
run:
  audio: {audio}
  out: {out}
  scan_workers: 1
"""


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """A suite that a shell runs in the background ignores Ctrl-C, and so would every command it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def music() -> list[Path]:
    return PIECES


@pytest.fixture(scope="module")
def one_thread():
    """Operators of microseconds on several threads crawl where other processes hold the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def excerpts(tmp_path_factory, music) -> Path:
    """Ten excerpts of real music, 9 to 21 s long, in flac, wav and ogg."""
    folder = tmp_path_factory.mktemp("excerpts")
    for number in range(10):
        source = music[number % len(music)]
        rate = soundfile.info(source).samplerate
        seconds = 9 + 1.31 * number
        start = int((5 + 17 * (number // len(music))) * rate)
        wave, rate = soundfile.read(source, start=start, frames=int(seconds * rate), dtype="float32")
        kind = ("flac", "wav", "ogg")[number % 3]
        soundfile.write(folder / f"{number:02d} {source.stem}.{kind}", wave, rate)
    return folder


@pytest.fixture
def small_config(tmp_path, excerpts) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.format(audio=json.dumps(str(excerpts)), out=json.dumps(str(tmp_path / "out"))))
    return path


def command(*arguments: str, **environment: str) -> list:
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)} | environment
    return [[sys.executable, "-m", "pipeline", *arguments], {"cwd": ROOT, "env": env}]


@pytest.fixture
def overtone(run_overtone):
    return run_overtone


@pytest.fixture(scope="session")
def run_overtone():
    """Run the real command; returns the finished process."""

    def run(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
        argv, options = command(*map(str, arguments), **environment)
        return subprocess.run(
            argv, **options, capture_output=True, text=True, timeout=timeout, errors="replace"
        )

    return run


def tars(out: Path) -> dict[str, str]:
    """sha256 of every finished tar, by column and shard."""
    import hashlib

    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.glob("columns/*/*.tar"))
    }


def records(out: Path) -> dict[str, dict]:
    """Every record without what may differ between runs."""
    found = {}
    for path in sorted(out.glob("columns/*/*.json")):
        record = json.loads(path.read_text())
        record.pop("run")
        found[str(path.relative_to(out))] = record
    return found


@pytest.fixture(scope="session")
def labelled(tmp_path_factory, excerpts) -> Path:
    """An OUT with the excerpts labelled, by one undisturbed run: to be read or copied, never changed."""
    folder = tmp_path_factory.mktemp("labelled")
    config, out = folder / "small.yaml", folder / "out"
    config.write_text(SMALL.format(audio=json.dumps(str(excerpts)), out=json.dumps(str(out))))
    argv, options = command("labels", str(config))
    done = subprocess.run(argv, **options, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
