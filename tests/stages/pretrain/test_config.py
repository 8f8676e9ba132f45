"""Training's configuration: what ships is valid, mistakes are named, a resumed run may not become another one."""

import json
from pathlib import Path

import pytest

from stages.pretrain.config import check_same, identity, load
from stages.pretrain.optim import Optim

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "pretrain"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_what_ships_is_valid(path):
    load(str(path))


@pytest.mark.parametrize(("name", "hours"), [("mert_95m", 1.5), ("mert_330m", 5.5)])
def test_the_recipes_batch(name, hours):
    config = load(str(CONFIGS / f"{name}.yaml"))
    assert config.optim.global_batch * config.data.samples / 24_000 / 3600 == pytest.approx(hours, rel=1e-3)
    assert (config.optim.updates, config.optim.warmup_updates) == (400_000, 32_000)


@pytest.mark.parametrize(("override", "says"), [
    ("optim.rat=1", r"optim\.rat: did you mean 'rate'"), ("engine.zero_stage=4", r"engine\.zero_stage is 4"),
    ("engine.precision=fp8", r"engine\.precision is 'fp8'"), ("run.name=a/b", r"run\.name is 'a/b'"),
    ("resume.allow=[dta]", r"resume\.allow is 'dta'"),
    ("guard.spike=0.5", r"guard\.spike is 0\.5"), ("checkpoints.keep=0", r"checkpoints\.keep is 0")])
def test_mistakes_are_named(override, says):
    with pytest.raises(ValueError, match=says):
        load(str(CONFIGS / "tiny.yaml"), [override])


@pytest.mark.parametrize(("override", "says"), [
    ("model.width=64", r"model\.width is 64, the run at RUN was started with 128: .*resume\.allow=model"),
    ("run.seed=5", "seed is 5, .* started with 0"),
    ("optim.global_batch=4", "global_batch is 4, .* started with 8"), ("optim.rate=0.1", r"optim\.rate is 0\.1, .*resume\.allow=optim"),
    ("masking.prob=0.5", r"masking\.prob is 0\.5"), ("mixture.prob=0.1", r"mixture\.prob is 0\.1")])
def test_another_run_is_refused_with_both_values_unless_allowed(override, says):
    before = json.loads(json.dumps(identity(load(str(CONFIGS / "tiny.yaml")))))
    now = json.loads(json.dumps(identity(load(str(CONFIGS / "tiny.yaml"), [override]))))
    check_same(before, before, (), "RUN")
    with pytest.raises(ValueError, match=says):
        check_same(before, now, (), "RUN")
    check_same(before, now, ("all",), "RUN")


def test_the_rate_rises_and_falls_to_zero():
    linear, cosine = (Optim(updates=100, warmup_updates=10, rate=1.0, schedule=s) for s in ("linear", "cosine"))
    assert linear.rate_at(0) == 0.1 and linear.rate_at(9) == linear.rate_at(10) == 1.0
    assert linear.rate_at(55) == 0.5 and cosine.rate_at(55) == pytest.approx(0.5)
    assert linear.rate_at(99) == pytest.approx(1 / 90) and cosine.rate_at(30) > linear.rate_at(30)
