"""Training's configuration: what ships is valid, mistakes are named, a resumed run may not become another
one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.pretrain.config import OLD_NAMES, Config, check_same, identity, load
from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.data.settings import Data
from stages.pretrain.model.mert import Mert
from stages.pretrain.run.optimiser import Adam
from stages.pretrain.run.settings import Optim

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "pretrain"


# layers, width, ffn, heads, norm, a code's width; hours of audio an update, updates, warm-up updates, rate,
# clip norm
SHIPPED = {
    "mert_95m": (12, 768, 3072, 12, "post", 64, 1.5, 400_000, 32_000, 5e-4, 10),
    "mert_330m": (24, 1024, 4096, 16, "pre", 128, 5.5, 400_000, 32_000, 1.5e-3, 1),
    "quickstart": (2, 192, 768, 4, "pre", 32, 8 * 5 / 3600, 150, 30, 1e-3, 1),
    "small": (2, 512, 2048, 8, "pre", 64, 8 * 5 / 3600, 3000, 100, 1e-3, 1),
    "tiny": (3, 128, 512, 4, "post", 16, 8 * 5 / 3600, 300, 30, 2e-3, 1),
}


def test_every_file_that_ships_has_a_row():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_the_recipe(name):
    config = load(str(CONFIGS / f"{name}.yaml"))
    model, optim = config.model, config.optim
    sizes = (model.layers, model.width, model.ffn, model.heads, model.norm, config.objective.head_width)
    hours = optim.global_batch * config.data.samples / 24_000 / 3600
    assert (config.run.name, *sizes) == (name, *SHIPPED[name][:6])
    assert (hours, optim.updates, optim.warmup_updates, optim.lr, optim.clip_norm) == pytest.approx(
        SHIPPED[name][6:], rel=1e-3
    )


LADDER = {"2.5m": 2.5e6, "6m": 6e6, "22m": 22e6, "95m": 95e6, "330m": 330e6}


def test_the_ladder_has_these_steps():
    assert {path.stem for path in (CONFIGS / "ladder").glob("*.yaml")} == set(LADDER)


@pytest.mark.parametrize("name", LADDER)
def test_a_step_of_the_ladder_is_small_but_for_its_size_and_schedule(name):
    step, small = (load(str(CONFIGS / f"{place}.yaml")) for place in (f"ladder/{name}", "small"))
    sizes = ("layers", "width", "ffn", "heads", "hidden_dropout", "attention_dropout")
    as_small = {size: getattr(small.model, size) for size in sizes}
    assert replace(step.model, **as_small) == small.model
    assert (step.objective, step.masking, step.mixture, step.data) == (
        small.objective,
        small.masking,
        small.mixture,
        small.data,
    )
    assert step.run.name == f"ladder_{name}" and step.model.ffn == 4 * step.model.width
    assert step.optim.global_batch >= step.engine.micro_batch
    with torch.device("meta"):
        parts = Mert(step.model, step.objective, (CodeColumn("codes", 8, 1024),), 336).parts()
    encoder = sum(count for part, count in parts.items() if not part.endswith(("_head", "_heads")))
    assert encoder == pytest.approx(LADDER[name], rel=0.16)


@pytest.mark.parametrize(
    ("name", "input_dropout", "dropout", "layer_drop", "gradient_scale", "relax", "piece_s"),
    [("mert_95m", 0.1, 0.1, 0.05, 0.1, None, (0.5, 1.0)), ("mert_330m", 0.0, 0.0, 0.0, 1.0, 32, (0.5, 1.5))],
)
def test_the_recipes_models_are_merts_in_what_sizes_do_not_say(
    name, input_dropout, dropout, layer_drop, gradient_scale, relax, piece_s
):
    """M config/pretrain: convolutions, what is dropped, and what both sizes share."""
    config = load(str(CONFIGS / f"{name}.yaml"))
    model, masking = config.model, config.masking
    assert (model.front_end, model.block, model.positions, model.position_kernel) == (
        "conv",
        "transformer",
        "conv",
        128,
    )
    assert model.conv.channels == (512,) * 7
    assert (model.input_dropout, model.hidden_dropout, model.attention_dropout) == (
        input_dropout,
        dropout,
        dropout,
    )
    assert (model.layer_drop, model.gradient_scale, model.attention_relax) == (
        layer_drop,
        gradient_scale,
        relax,
    )
    assert (masking.prob, masking.span, config.mixture.prob, config.mixture.piece_s) == (0.8, 5, 0.5, piece_s)
    assert (config.optim.schedule, config.optim.betas, config.optim.weight_decay) == (
        "linear",
        (0.9, 0.98),
        0.01,
    )


@pytest.mark.parametrize(("share", "groups"), [(1.0, 1), (0.1, 2), (0.0, 2)])
def test_the_cqt_head_may_have_a_rate_of_its_own(share, groups):
    net = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "cqt_head": torch.nn.Linear(2, 2)})
    adam = Adam(net.named_parameters(), Optim(cqt_head_lr_scale=share, weight_decay=0.0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    adam.set_lr(0.5)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    moved = {name: float((before[name] - value).mean()) for name, value in net.state_dict().items()}
    assert len(adam.param_groups) == groups
    for part, rate in (("encoder", 0.5), ("cqt_head", 0.5 * share)):
        assert (moved[f"{part}.weight"], moved[f"{part}.bias"]) == pytest.approx((rate, rate), rel=1e-4)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.cqt_head_lr_scale=-1", r"optim\.cqt_head_lr_scale is -1"),
        ("optim.warmup=1", r"optim\.warmup is no known key: did you mean 'warmup_updates'"),
        ("engine.zero_stage=4", r"engine\.zero_stage is 4"),
        ("engine.precision=fp8", r"engine\.precision is 'fp8'"),
        ("run.name=a/b", r"run\.name is 'a/b'"),
        ("resume.allow=[dta]", r"resume\.allow\[0\] is 'dta': expected data, model, .* or all"),
        ("guard.spike=0.5", r"guard\.spike is 0\.5"),
        ("run.dir=null", r"run\.dir is empty: expected text$"),
        ("model.conv.kernels=[3, 3]", r"model\.conv\.kernels is \[3, 3\]: expected 7, one a layer"),
        (
            "model.mel.n_fft=321",
            r"model\.mel\.n_fft is 321: expected a whole number, 320 or more, a multiple of 2; no sa",
        ),
        ("checkpoints.keep=0", r"checkpoints\.keep is 0"),
    ],
)
def test_mistakes_are_named(override, says):
    with pytest.raises(ValueError, match=says):
        load(str(CONFIGS / "tiny.yaml"), [override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.width=64", r"model\.width is 64, the run at RUN was started with 128: .*resume\.allow=model"),
        ("run.seed=5", "seed is 5, .* started with 0"),
        ("optim.global_batch=4", "global_batch is 4, .* started with 8"),
        ("optim.lr=0.1", r"optim\.lr is 0\.1, .*resume\.allow=optim"),
        ("masking.prob=0.5", r"masking\.prob is 0\.5"),
        ("mixture.prob=0.1", r"mixture\.prob is 0\.1"),
    ],
)
def test_another_run_is_refused_with_both_values_unless_allowed(override, says):
    before = json.loads(json.dumps(identity(load(str(CONFIGS / "tiny.yaml")))))
    now = json.loads(json.dumps(identity(load(str(CONFIGS / "tiny.yaml"), [override]))))
    check_same(before, before, (), "RUN")
    with pytest.raises(ValueError, match=says):
        check_same(before, now, (), "RUN")
    check_same(before, now, ("all",), "RUN")


def test_the_rate_rises_and_falls_to_zero():
    linear, cosine = (Optim(updates=100, warmup_updates=10, lr=1.0, schedule=s) for s in ("linear", "cosine"))
    assert linear.lr_at(0) == 0.1 and linear.lr_at(9) == linear.lr_at(10) == 1.0
    assert linear.lr_at(55) == 0.5 and cosine.lr_at(55) == pytest.approx(0.5)
    assert linear.lr_at(99) == pytest.approx(1 / 90) and cosine.lr_at(30) > linear.lr_at(30)


def test_a_choice_that_came_later_has_its_default_in_a_run_begun_before():
    now = json.loads(json.dumps(identity(load(str(CONFIGS / "tiny.yaml")))))
    before = json.loads(json.dumps(now))
    del (
        before["optim"]["cqt_head_lr_scale"],
        before["model"]["masked_input"],
        before["model"]["conv"]["kernels"],
        before["seed"],
    )
    check_same(before, now, (), "RUN")
    now["optim"]["cqt_head_lr_scale"] = 0.1
    with pytest.raises(
        ValueError, match=r"optim\.cqt_head_lr_scale is 0\.1, the run at RUN was started with 1\.0"
    ):
        check_same(before, now, (), "RUN")


OLD = {  # old name: a value, and how today's configuration has it
    "optim.rate": (0.25, lambda config: config.optim.lr),
    "optim.cqt_head_rate": (0.5, lambda config: config.optim.cqt_head_lr_scale),
    "run.weights": ("there", lambda config: config.run.init_from),
    "data.weights": ([3.0], lambda config: list(config.data.passes)),
}


def test_every_old_name_has_a_row():
    assert set(OLD) == set(OLD_NAMES)


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("way", ["file", "set", "section", "set over a file with the old name"])
def test_an_old_name_still_works_and_one_line_gives_the_new_one(old, way, tmp_path, capsys):
    (value, found), (section, _, key) = OLD[old], old.partition(".")
    new = f"{section}.{OLD_NAMES[old]}"
    today = {"optim.rate": 1.0, "optim.cqt_head_rate": 1.0, "run.weights": "x", "data.weights": [1.0]}[old]
    data = {"data": {}} | {section: {OLD_NAMES[old]: today}}
    if way != "set" and way != "section":
        data[section] = {key: value if way == "file" else today}
    (tmp_path / "c.yaml").write_text(json.dumps(data))
    overrides = {"file": [], "section": [f"{section}={json.dumps({key: value})}"]}
    config = load(str(tmp_path / "c.yaml"), overrides.get(way, [f"{old}={json.dumps(value)}"]))
    assert found(config) == value
    lines = capsys.readouterr().err.splitlines()
    assert set(lines) == {f"overtone: {old} is now called {new}; the old name still works"}
    assert len(lines) == (2 if way.startswith("set over") else 1)


@pytest.mark.parametrize("old", OLD)
def test_both_names_at_once_are_refused(old, tmp_path):
    (value, _), (section, _, key) = OLD[old], old.partition(".")
    data = {"data": {}} | {section: {key: value, OLD_NAMES[old]: value}}
    (tmp_path / "c.yaml").write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match=f"{old} is the old name of {section}.{OLD_NAMES[old]}, and both are"
    ):
        load(str(tmp_path / "c.yaml"))


def test_mistakes_in_a_value_under_its_old_name_have_the_new_one():
    with pytest.raises(ValueError, match=r"optim\.lr is -1: expected a number, above 0"):
        load(str(CONFIGS / "tiny.yaml"), ["optim.rate=-1"])


def test_a_run_begun_under_the_old_names_goes_on_without_a_word(capsys):
    now = json.loads(json.dumps(identity(load(str(CONFIGS / "quickstart.yaml")))))
    before = json.loads(json.dumps(now))
    for old in ("rate", "cqt_head_rate"):
        before["optim"][old] = before["optim"].pop(OLD_NAMES[f"optim.{old}"])
    check_same(before, now, (), "RUN")
    before["optim"]["rate"] = 1.0
    with pytest.raises(ValueError, match=r"optim\.lr is 0\.001, the run at RUN was started with 1\.0"):
        check_same(before, now, (), "RUN")
    assert before["optim"]["rate"] == 1.0 and capsys.readouterr().err == ""


def test_the_identity_of_the_data_keeps_its_old_name():
    """It is in RUN/data.json and in the fingerprint."""
    named = ["crops_per_segment", "max_clipping", "max_silence", "min_rms_db", "where"]
    assert Data(passes=(2.0,)).identity() == dict.fromkeys(named) | {
        "codes": [],
        "cqt": "column",
        "crop_samples": 120_000,
        "min_segment_s": 0.0,
        "weights": [2.0],
        "window_shards": 64,
    }
    assert Config(data=Data(passes=(2.0,))).data.identity()["weights"] == [2.0]
