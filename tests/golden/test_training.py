"""Twenty updates of a seeded run are those of the commit the golden facts were made at."""

import pytest

from tests.golden import read, training

GOLDEN = read("training")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    training.train(folder)
    return folder


def test_every_update_sees_the_same_samples(folder):
    assert training.sample_ids(folder) == GOLDEN["sample_ids"]


def test_places_rates_and_counts_are_the_same(folder):
    found = training.updates(folder)
    assert [[row[n] for n in training.EXACT] for row in found] == [
        [row[n] for n in training.EXACT] for row in GOLDEN["updates"]
    ]


@pytest.mark.parametrize("name", training.NUMBERS)
def test_losses_and_gradient_norms_are_the_same_within_rounding(folder, name):
    for row, golden in zip(training.updates(folder), GOLDEN["updates"], strict=True):
        assert row[name] == pytest.approx(golden[name], rel=training.TOLERANCE), row["update"]


def test_the_held_out_loss_is_the_same_within_rounding(folder):
    assert training.rows(folder, "valid")[-1]["loss"] == pytest.approx(
        GOLDEN["validation"], rel=training.TOLERANCE
    )


def test_a_checkpoint_holds_the_same_tensors_in_the_same_shapes(folder):
    assert training.checkpoint(folder) == GOLDEN["checkpoint"]
