"""Names of figures in metrics.jsonl: rows of any version under the present ones, and both for `--json`."""

from stages.pretrain.run.rows import renamed, with_old_names

OLD = {"kind": "valid", "gain": [1.0], "gain_low": [0.5], "gain_high": [1.5], "rate": 0.1, "loss": 2.0}
NEW = {"kind": "valid", "gain_over_unigram": [1.0], "gain_over_unigram_low": [0.5]}
NEW |= {"gain_over_unigram_high": [1.5], "lr": 0.1, "loss": 2.0}


def test_old_rows_are_read_under_the_present_names():
    assert renamed(OLD) == renamed(NEW) == NEW


def test_json_has_both_names():
    assert with_old_names(NEW) == NEW | OLD
    assert with_old_names({"loss": 1.0}) == {"loss": 1.0}
