from collections import Counter

import pytest

from stages.evaluate.probe.published import PATH, beside, published

HEAD = "model,parameters_m,task,metric,value,protocol,source\n"


def test_every_figure_has_a_source_that_can_be_looked_up():
    rows = published()
    assert len(rows) > 90
    assert all("arXiv " in row.source or "github.com/" in row.source for row in rows)
    assert all(0 < row.value < 100 and (row.parameters_m or 5) >= 5 for row in rows)
    same = Counter((row.model, row.task, row.metric, row.protocol) for row in rows)
    assert max(same.values()) == 1


def test_a_size_belongs_to_one_model():
    sizes = {(row.model, row.parameters_m) for row in published()}
    assert len(sizes) == len({model for model, _ in sizes})


@pytest.mark.parametrize(
    "model, task, metric, value",
    [
        ("MERT-v1-95M", "gtzan_genre", "accuracy", 78.3),
        ("MERT-v1-95M", "giantsteps_key", "weighted_accuracy", 62.5),
        ("MERT-v1-95M", "mtt_tags", "average_precision", 37.5),
        ("MERT-v1-95M", "emomusic", "r2_valence", 54.1),
        ("MERT-v1-95M", "gtzan_beats", "f1", 87.9),
        ("MERT-v1-330M", "gtzan_genre", "accuracy", 77.6),
        ("MuQ", "gtzan_genre", "accuracy", 83.8),
        ("MERT-v2-30s", "gtzan_genre", "accuracy", 91.72),
        ("MERT-v2-FullSong", "giantsteps_key", "weighted_accuracy", 67.05),
        ("PupuJEPA-Tiny", "giantsteps_key", "weighted_accuracy", 64.2),
        ("PupuJEPA-Small", "mtt_tags", "roc_auc", 91.4),
        ("PupuJEPA-Large", "gtzan_beats", "f1", 91.0),
        ("OMAR-RQ multifeature-25hz-fsq", "nsynth_pitch", "accuracy", 94.0),
    ],
)
def test_known_figures_are_there(model, task, metric, value):
    found = [row.value for row in published() if (row.model, row.task, row.metric) == (model, task, metric)]
    assert value in found


def test_a_measured_value_stands_where_it_belongs():
    rows = beside("gtzan_genre", "accuracy", 78.45, "mine", 95)
    names = [row.model for row in rows]
    assert (
        names[names.index("mine") - 1] == "PupuJEPA-Small" and names[names.index("mine") + 1] == "MERT-v1-95M"
    )
    assert {(row.task, row.metric) for row in rows} == {("gtzan_genre", "accuracy")}
    assert {row.metric for row in beside("mtt_tags", "roc_auc", 90, "mine")} == {"roc_auc"}
    assert [row.value for row in rows] == sorted((row.value for row in rows), reverse=True)
    assert (rows[names.index("mine")].parameters_m, rows[names.index("mine")].protocol) == (
        95,
        "measured here",
    )


def test_a_task_that_nobody_published_has_one_row():
    assert [row.model for row in beside("my_task", "accuracy", 50, "mine")] == ["mine"]


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("m,5,t,accuracy,high,p,arXiv 1", "line 2: parameters_m and value must be numbers"),
        ("m,5M,t,accuracy,50,p,arXiv 1", "line 2: parameters_m and value must be numbers"),
        ("m,5,t,accuracy,50,p,", "line 2: source is '': every figure needs one"),
        ("m,5,t,accuracy,50,p", "line 2 is .*: expected 7 cells"),
        ("m,5,t,accuracy,50,p,arXiv 1,more", "line 2 is .*: expected 7 cells"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, sentence):
    path = tmp_path / "published.csv"
    path.write_text(f"{HEAD}{line}\n")
    with pytest.raises(ValueError, match=sentence):
        published(path)


def test_the_file_is_shipped():
    assert PATH.is_file() and PATH.parent.name == "probe"
