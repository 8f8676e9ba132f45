"""plan: only the kept count; what became something else is neither placed, nor drawn, nor made validation."""

import pytest

from stages.label.plan import plan
from tests.stages.label.test_plan import Plans, digest, draw, kept


@pytest.fixture
def plans(tmp_path) -> Plans:
    return Plans(tmp_path)


def no_longer(row: dict, status: str, **values) -> dict:
    return row | {"status": status, **values}


def test_files_that_are_not_kept_fill_no_shard_and_take_no_split(plans):
    corpus = [kept(str(i)) for i in range(12)]
    lowest = min((r["recording"] for r in corpus), key=draw)
    gone = [no_longer(r, "rejected", reason="torn") for r in corpus if r["recording"] == lowest]
    rest = [r for r in corpus if r["recording"] != lowest]
    alone = plans(rest, validation_share=1e-9)
    whole = plans.path.read_bytes()
    plans.path.unlink()
    assert plans(rest + gone, validation_share=1e-9) == alone
    assert plans.path.read_bytes() == whole and plans.summary.valid == 1


def test_what_is_no_longer_kept_is_not_planned_anew(plans):
    corpus = [kept(str(i)) for i in range(4)]
    first = plans(corpus)
    gone = no_longer(corpus[0], "rejected", reason="torn")
    rows = plans([gone, *corpus[1:]], retry=[gone["recording"]])
    row = rows[gone["recording"]]
    assert (row["shard"], row["attempt"], row["tombstone"]) == (
        first[gone["recording"]]["shard"],
        0,
        "edited",
    )
    assert plans.summary.replanned == 0


def test_of_equal_contents_planned_before_the_first_ones_split_counts(plans):
    equal = {"size": 7, "quick": "q"}
    names = [f"e{i}" for i in range(40)]
    order = sorted(names, key=lambda name: digest(name, 16))
    drawn = {name: draw(digest(name, 16)) < 0.5 for name in names}
    first = next(name for name in order if drawn[name] != drawn[order[-1]])  # unlike the last one
    rows = plans([kept(name, sha256=name, **equal) for name in (first, order[-1])], validation_share=0.5)
    assert rows[digest(first, 16)]["order"] == 0
    unknown = kept("new", **equal)  # its whole sha256 was never needed: it may be either
    rows = plans([unknown], validation_share=0.5)
    assert (
        rows[unknown["recording"]]["split"]
        == rows[digest(first, 16)]["split"]
        != rows[digest(order[-1], 16)]["split"]
    )


@pytest.mark.parametrize("inherits", ["place", "content"])
def test_a_version_of_what_was_trained_on_never_becomes_the_validation_recording(plans, inherits):
    plans([kept("alone")], validation_share=1e-9)
    same = (
        {"path_bytes": b"/m/alone"}
        if inherits == "place"
        else {"size": kept("alone")["size"], "quick": kept("alone")["quick"]}
    )
    low = min((f"v{i}" for i in range(50)), key=lambda name: draw(digest(name, 16)))
    rows = plans([kept(low, **same), kept("new")], validation_share=1e-9)
    assert rows[digest(low, 16)]["split"] == "train" and rows[digest("new", 16)]["split"] == "valid"


@pytest.mark.parametrize("status", ["rejected", "duplicate"])
def test_a_validation_recording_that_is_no_longer_kept_is_replaced_by_a_new_one(plans, status):
    corpus = [kept("a"), kept("b")]
    rows = plans(corpus, validation_share=1e-9)
    (valid,) = [r for r in corpus if rows[r["recording"]]["split"] == "valid"]
    (train,) = [r for r in corpus if r is not valid]
    rows = plans([no_longer(valid, status, reason="torn"), train, kept("new")], validation_share=1e-9)
    assert rows[digest("new", 16)]["split"] == "valid" and rows[train["recording"]]["split"] == "train"
    assert rows[valid["recording"]]["tombstone"] == {"rejected": "edited", "duplicate": "duplicate"}[status]


def test_what_is_gone_keeps_its_row_as_it_was(plans):
    corpus = [kept("a", sha256="s", mtime_ns=7), kept("b")]
    first = plans(corpus)
    rows = plans(corpus[1:])
    assert rows[digest("a", 16)] == first[digest("a", 16)] | {"tombstone": "vanished"}


def test_half_a_minute_is_a_shard_and_a_short_recording_counts_by_its_length(plans):
    rows = plans([kept(name, 0.4, size=10**9) for name in "abcdef"], shard_minutes=0.025)
    assert plans.summary.shards == 2 and len({row["shard"] for row in rows.values()}) == 2


def test_a_catalog_of_something_else_is_refused(tmp_path):
    (tmp_path / "catalog.parquet").write_bytes(b"not a catalog")
    with pytest.raises(ValueError, match=r"^catalog .*catalog.parquet: .*move it away"):
        plan(
            None, tmp_path / "catalog.parquet", tmp_path / "plan.parquet", shard_minutes=1, validation_share=0
        )
