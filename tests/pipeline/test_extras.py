"""Without an extra of the package: one sentence that names the pip command, and everything else works."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


def without(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """The command where `module` cannot be imported."""
    code = f"import sys; sys.modules[{module!r}] = None\n"
    code += f"from pipeline.cli import main; sys.exit(main({arguments!r}))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, errors="replace"
    )


def sentence(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("module", ["deepspeed", "matplotlib", "tensorboard"])
def test_train_without_its_extra_is_refused_before_ray_is_started(labelled, tmp_path, module):
    config = ("configs/pretrain/quickstart.yaml", "--set", f'data.corpora=["{labelled}"]')
    text = sentence(without(module, "train", *config, "--set", f"run.dir={tmp_path}"))
    assert text.startswith(f"overtone: {module} is not installed") and "pip install 'overtone[train]'" in text
    assert not list(tmp_path.iterdir())


def test_tensorboard_is_needed_only_where_it_is_written(tmp_path):
    given = ("--set", 'data.corpora=["/none"]', "--set", "watch.tensorboard=false")
    text = sentence(without("tensorboard", "train", "configs/pretrain/quickstart.yaml", *given))
    assert "/none holds no plan.parquet" in text


def test_stats_without_plotly_prints_all_but_the_page(labelled):
    text = sentence(done := without("plotly", "stats", str(labelled)))
    assert "pip install 'overtone[report]'" in text and "--no-page" in text and "Worth a look" in done.stdout
    assert without("plotly", "stats", str(labelled), "--no-page").returncode == 0
    assert without("plotly", "stats", str(labelled), "--json").returncode == 0


def test_any_other_package_is_named(labelled):
    assert "overtone: pyarrow is not installed" in sentence(without("pyarrow", "status", str(labelled)))
