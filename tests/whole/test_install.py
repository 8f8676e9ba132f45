"""`pip install .`: what the package holds, and that it labels in an environment with another torch 2.x."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.excerpt import PIECES
from tests.test_floors import FILES

TORCHES = ("2.6.0", "2.7.1")  # the oldest that pyproject.toml allows, and one more should that be here


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("pipeline", "stages", "cluster"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "made", folder)
    [made] = (folder / "made").glob("*.whl")
    return made


def pip(python: str | Path, *arguments) -> str:
    argv = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_template_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    templates = {str(p.relative_to(ROOT)) for p in (ROOT / "pipeline" / "report" / "templates").iterdir()}
    assert len(templates) == 3
    facts = {f"stages/evaluate/probe/{name}" for name in ("published.csv", "sets/gtzan_filtered.txt")}
    held = {name for name in names if ".dist-info/" not in name}
    assert held == templates | facts | set(map(str, FILES))


@pytest.fixture
def environment(tmp_path, wheel):
    """A folder with a venv of another torch, and of the package without its extras."""
    import torch

    index = [sys.executable, "-m", "pip", "index", "versions", "torch"]
    if subprocess.run(index, capture_output=True, timeout=600).returncode:
        pytest.skip("no package index answers")
    other = next(version for version in TORCHES if not torch.__version__.startswith(version))
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip(python, "install", f"torch=={other}")
    pip(python, "install", wheel)
    yield tmp_path, other
    shutil.rmtree(tmp_path / "venv")  # gigabytes


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_another_torch_labels_without_deepspeed(environment):
    folder, other = environment
    for piece in PIECES[:2]:
        (folder / "music").mkdir(exist_ok=True)
        shutil.copy(piece, folder / "music")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        argv = [folder / "venv" / "bin" / "overtone", *arguments]
        own = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
        return subprocess.run(argv, cwd=folder, env=own, capture_output=True, text=True, timeout=600)

    about = run("doctor").stdout
    assert f" torch        {other}" in about and "\n✗ deepspeed    deepspeed is not installed" in about
    config = ROOT / "configs" / "labels" / "best_rq.yaml"
    done = run("labels", config, "--audio", "music", "--out", "out")
    assert done.returncode == 0 and "2 found = 2 kept" in done.stdout, done.stdout + done.stderr
    assert run("verify", "out").returncode == 0
    assert "2 recordings" in run("stats", "out", "--no-page").stdout
