from collections import Counter
from pathlib import Path

import pytest

from stages.evaluate.probe.published import published
from stages.evaluate.probe.sets import SETS

DOCS = (Path(__file__).resolve().parents[5] / "docs/probes.md").read_text()


def test_there_are_eight_sets_with_tasks_of_their_own():
    assert SETS.keys() == {
        "gtzan",
        "giantsteps",
        "magnatagatune",
        "emomusic",
        "nsynth",
        "guitarset",
        "mtg-jamendo",
        "ballroom",
    }
    assert max(Counter(name for found in SETS.values() for name in found.tasks).values()) == 1


@pytest.mark.parametrize("name", SETS)
def test_a_set_says_what_it_needs(name, tmp_path):
    found = SETS[name]
    assert found.layout.startswith("expected ") and found.split and found.licence
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"{path}.*expected "):
            found.read(path)


@pytest.mark.parametrize("name", SETS)
def test_the_page_has_a_row_for_each_set(name):
    (row,) = (line for line in DOCS.splitlines() if line.startswith(f"| `{name}` |"))
    assert all(f"`{task}`" in row for task in SETS[name].tasks)


def test_published_figures_are_of_tasks_that_exist():
    assert {row.task for row in published()} <= {name for found in SETS.values() for name in found.tasks}
