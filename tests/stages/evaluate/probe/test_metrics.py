"""Metrics are mir_eval's and scikit-learn's; an interval resamples whole groups."""

import numpy as np
import pytest
from mir_eval.beat import f_measure, trim_beats
from mir_eval.key import weighted_score

from stages.evaluate.probe import metrics


def test_beats_score_as_mir_eval_does():
    random = np.random.default_rng(0)
    for _ in range(40):
        true_s = np.sort(random.uniform(0, 40, random.integers(2, 150)))
        output_T = random.random(1000)
        found_s = metrics.beat_times(output_T, 0.04, 0.6)
        expected = f_measure(trim_beats(true_s), trim_beats(found_s))
        assert metrics.beat_f(true_s, output_T, 0.04, 0.6) == pytest.approx(expected, abs=1e-12)


def test_beats_that_are_found_are_worth_one_and_silence_nothing():
    true_s = np.arange(5.5, 30, 0.5)
    output_T = np.zeros(800)
    output_T[np.floor(true_s / 0.04).astype(int)] = 1
    assert metrics.beat_f(true_s, output_T, 0.04, 0.5) == 1
    assert metrics.beat_f(true_s, np.zeros(800), 0.04, 0.5) == 0


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
