"""Beats are found, keys scored as mir_eval does; an interval resamples whole groups."""

import numpy as np
import pytest
from mir_eval.key import weighted_score

from stages.evaluate.probe import metrics


@pytest.mark.parametrize("bpm", [70, 95, 133, 171])
def test_beats_that_are_seen_are_found(bpm):
    """Whatever the tempo's place in the frames' grid; with some beats missing and false ones added."""
    random = np.random.default_rng(bpm)
    true_s = np.arange(0.31, 60, 60 / bpm)
    seen_s = np.concatenate([true_s[random.random(len(true_s)) > 0.2], random.uniform(0, 60, 20)])
    output_T = random.normal(0, 0.1, 1500)
    np.maximum.at(output_T, np.floor(seen_s / 0.04).astype(int), 1.0)
    assert metrics.beat_f(true_s, output_T, 0.04) > 0.9


def test_chance_is_far_below():
    scores = [
        metrics.beat_f(np.arange(0.31, 60, 0.5), np.random.default_rng(i).normal(0, 1, 1500), 0.04)
        for i in range(10)
    ]
    assert np.mean(scores) < 0.5


@pytest.mark.parametrize("output_T", [np.zeros(1500), np.zeros(3), np.ones(40)])
def test_beats_of_silence_and_of_next_to_nothing(output_T):
    assert 0 <= metrics.beat_f(np.arange(0, 60, 0.5), output_T, 0.04) <= 0.6


def test_keys_are_scored_as_mir_eval_does():
    outputs = np.eye(24)
    for number, key in enumerate(metrics.KEYS):
        expected = [weighted_score(key, other) for other in metrics.KEYS]
        np.testing.assert_allclose(metrics.key_score(np.full(24, number), outputs), expected)


@pytest.mark.parametrize(
    "text, key",
    [
        ("C# minor", "C# minor"),
        ("Db major", "C# major"),
        ("a:min", "A minor"),
        ("Bbm", "Bb minor"),
        ("F", "F major"),
        ("G# minor", "Ab minor"),
        ("e♭ Major", "Eb major"),
    ],
)
def test_spellings_of_keys(text, key):
    assert metrics.KEYS[metrics.key_number(text)] == key


@pytest.mark.parametrize("text", ["H major", "C dorian", "", "unknown"])
def test_what_is_no_key_is_named(text):
    with pytest.raises(ValueError, match="is no key"):
        metrics.key_number(text)


def test_an_interval_of_many_equal_groups_is_that_of_their_mean():
    """Normal theory: ± 1.96 / √n deviations of the groups' means; items of a group move together."""
    random = np.random.default_rng(1)
    of_group = random.normal(0, 1, 200)
    scores = np.repeat(of_group, 5)
    groups = [f"g{i // 5}" for i in range(1000)]
    low, high = metrics.interval(groups, lambda index: scores[index].mean())
    assert (high - low) / 2 == pytest.approx(1.96 * of_group.std() / 200**0.5, rel=0.12)
    alone_low, alone_high = metrics.interval(
        [str(i) for i in range(1000)], lambda index: scores[index].mean()
    )
    assert (high - low) > 1.8 * (alone_high - alone_low)


def test_tags_that_never_occur_do_not_count():
    target = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], float)
    output = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.1], [0.8, 0.7, 0.3], [0.1, 0.3, 0.9]])
    assert metrics.roc_auc(target, output) == 1
    assert metrics.average_precision(target, output) == 1


def test_numbers_have_a_figure_each():
    found = metrics.metrics_of("numbers", ("arousal", "valence"))
    assert [metric.name for metric in found] == ["r2", "r2_arousal", "r2_valence"]
    target = np.array([[1.0, 0], [2, 1], [3, 5]])
    output = np.array([[1.0, 2], [2, 2], [3, 2]])
    assert [round(float(metric.of(target, output)), 3) for metric in found] == [0.5, 1.0, 0.0]
