"""Who is ahead, by how much, and on what."""

from stages.evaluate.probe import table
from stages.evaluate.probe.protocol import Result


def row(task, encoder, score, half=0.05, pooling="mean", scores=(), probe="linear", layer="best"):
    groups = tuple(f"g{i}" for i in range(len(scores)))
    own = (score, score - half, score + half, "3@0.01", 20, 5, tuple(scores), groups)
    return Result(task, encoder, pooling, probe, layer, "accuracy", *own)


# the model is better on every single item of `b`, by less than its interval is wide
A = [i % 2 for i in range(40)]
ROWS = [
    row("a", "mine", 0.9),
    row("a", "CQT", 0.7),
    row("b", "mine", 0.55, 0.2, scores=[x + 0.05 for x in A]),
    row("b", "CQT", 0.50, 0.2, scores=A),
    row("c", "mine", 0.3),
    row("c", "mine", 0.4, pooling="mean+dev"),
    row("c", "CQT", 0.6),
]


def test_tasks_won_intervals_apart_and_paired_differences():
    ((other, won, tasks, apart, paired, mean),) = table.compared(ROWS, "mine")
    assert (other, won, tasks, apart, paired) == ("CQT", ["a", "b"], 3, ["a"], ["b"])
    assert round(mean, 4) == round((0.2 + 0.05 - 0.2) / 3, 4)


def test_each_encoder_has_its_better_pooling():
    assert table.best(ROWS)["c"]["mine"].pooling == "mean+dev"


def test_the_page_and_the_terminal():
    text = table.written(ROWS, ["mine"], ["b: 2 of 9 recordings without audio"])
    assert "| CQT | 2 of 3 | 1 (a) | 1 (b) | +0.017 |" in text
    cells = "**0.900** (0.850 to 0.950) 3@0.01 | 0.700 (0.650 to 0.750) 3@0.01"
    assert f"| a (20 of 5) | accuracy | mean | {cells} |" in text
    assert "Note: b: 2 of 9 recordings without audio" in text
    assert "mine is ahead of CQT on 2 of 3 tasks, intervals apart on 1" in table.shown(ROWS, ["mine"])


def test_published_figures_stand_beside_a_public_task():
    text = table.written([row("gtzan_genre", "mine", 0.5)], ["mine"])
    assert (
        "| gtzan_genre | accuracy | mine (linear, mean) | 50.0 | measured here |" in text and "MERT" in text
    )
