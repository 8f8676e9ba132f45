"""The line of a row, the boards and the picture of the curves, of rows of this and of older versions."""

import json

import pytest
from matplotlib.figure import Figure

from stages.pretrain.config import Watch
from stages.pretrain.run import display

UPDATE = {"kind": "update", "update": 7, "loss": 2.5, "ce": [3.0, None], "accuracy": [0.125, None]}
UPDATE |= {"gain_over_unigram": [0.25, None], "cqt_error": 0.5, "cqt_mean_error": 1.0, "cqt_line_error": 0.75}
UPDATE |= {"grad_norm": 1.5, "lr": 0.001, "scale": 1.0, "audio_s_per_s": 40.0, "utilisation": 0.5}
UPDATE |= {"data_wait": 0.01, "skipped": 0, "left_s": 3700.0, "time": 1.0}
VALID = {
    "kind": "valid",
    "update": 7,
    "loss": 2.0,
    "ce": [3.0],
    "accuracy": [0.25],
    "gain_over_unigram": [0.5],
}
VALID |= {"gain_over_unigram_low": [0.25], "gain_over_unigram_high": [0.75], "effective_rank": [9.4, 8.6]}
OLD_NAMES = {"gain_over_unigram": "gain", "gain_over_unigram_low": "gain_low"}
OLD_NAMES |= {"gain_over_unigram_high": "gain_high", "lr": "rate"}


def old(row: dict) -> dict:
    return {OLD_NAMES.get(name, name): value for name, value in row.items()}


@pytest.mark.parametrize("version", [dict, old])
def test_the_line_of_an_update(version):
    assert display.line(version(UPDATE), 100) == (
        "      7/100  loss 2.500  ce 3.00 -  acc% 12.5 -  gain_over_unigram 0.25 -  "
        "cqt 0.5000 (mean 1.0000, line 0.7500)  grad 1.50  lr 0.001000  40.0 audio-s/s  50% of peak  "
        "wait 1%  left 1h01"
    )


@pytest.mark.parametrize("version", [dict, old])
def test_the_line_of_held_out_figures(version):
    assert display.line(version(VALID), 100) == (
        " held-out 7  loss 2.000  ce 3.00  acc% 25.0  gain_over_unigram 0.50  "
        "gain_over_unigram[0] in 0.250…0.750  rank 9 9"
    )


def test_what_is_not_ordinary_is_added():
    line = display.line(UPDATE | {"scale": 1024.0, "skipped": 3, "loss": None, "left_s": float("inf")}, 100)
    assert "scale 1024" in line and "skipped 3" in line and "loss -" in line and line.endswith("left -")
    for row in (UPDATE, VALID):
        assert "  musical 0.500 0.250  " in display.line(row | {"musical_error": [0.5, 0.25]}, 100)


def test_the_picture_joins_rows_with_old_and_new_names(tmp_path, monkeypatch):
    rows = [{"kind": "start", "update": 0}, *(old(UPDATE | {"update": n}) for n in (1, 2, 3))]
    rows += [{"kind": "start", "update": 3}, *(UPDATE | {"update": n} for n in (4, 5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda own, *a, **k: figures.append(own) or save(own, *a, **k))
    display.draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["curves.png", "metrics.jsonl"]
    axes = {axes.get_title(): axes for axes in figures[0].axes}
    (curve, *_) = [line for line in axes["gain_over_unigram"].lines if line.get_label() == "codebook 0"]
    assert list(curve.get_xdata()) == [1, 2, 3, 4, 5] and set(curve.get_ydata()) == {0.25}
    assert list(axes) == ["loss", "gain_over_unigram", "CQT error", "gradient norm"]


def test_the_picture_has_musical_errors_and_probes_where_there_are_any(tmp_path, monkeypatch):
    rows = [UPDATE | {"update": n, "musical_error": [1.0 / n, 0.5]} for n in (1, 2)]
    rows += [
        {"kind": "probe", "update": n, "recording": [0.1, 0.1 * n], "chroma": [0.5, 0.25]} for n in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda own, *a, **k: figures.append(own) or save(own, *a, **k))
    display.draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    musical, probes = figures[0].axes[4:]
    assert [line.get_label() for line in musical.lines] == ["target 0", "target 1"]
    assert [list(line.get_ydata()) for line in musical.lines] == [[1.0, 0.5], [0.5, 0.5]]
    assert [list(line.get_ydata()) for line in probes.lines] == [[0.1, 0.2], [0.5, 0.5]]


def test_tensorboard_gets_a_scalar_for_each_figure(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    boards = display.Boards(tmp_path, Watch(tensorboard=True, wandb=False), "run", {}, 0)
    boards.add(UPDATE)
    boards.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"update/loss", "update/gain_over_unigram/0", "update/lr"} <= tags
    assert not tags & {"update/update", "update/time", "update/ce/1", "update/kind"}
    (event,) = events.Scalars("update/ce/0")
    assert (event.step, event.value) == (7, 3.0)
