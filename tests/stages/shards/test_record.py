import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.shards import record as records
from stages.shards.record import canonical, recipe8
from stages.shards.storage import Storage

PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                     lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def test_a_hash_does_not_hang_on_the_order_of_keys():
    assert recipe8({"a": 1, "b": {"c": 2, "d": 3}}) == recipe8({"b": {"d": 3, "c": 2}, "a": 1})


def test_a_hash_knows_the_values_apart():
    assert len({recipe8({"a": v}) for v in (1, 2, "1", None, True, [1], 1.5)}) == 7


def test_thirty_seconds_are_thirty_seconds():
    assert recipe8({"segment_s": 30}) == recipe8({"segment_s": 30.0})


@given(PLAIN)
def test_canonical_is_a_fixed_point(value):
    assert canonical(canonical(value)) == canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"x"])
def test_what_has_no_stable_hash_is_refused_by_its_path(value):
    with pytest.raises(ValueError, match=r"recipe\.decode\.list\[1\]"):
        recipe8({"decode": {"list": [0, value]}})


def test_finished_needs_record_and_tar(tmp_path):
    storage = Storage(tmp_path)
    for name in ("a.tar", "a.json", "b.tar", "c.json", ".attempt-1-d.tar", ".attempt-1-d.json"):
        storage.write(f"columns/audio/{name}", b"")
    assert records.finished(storage, "audio") == {"a"}
    assert records.finished(storage, "cqt-none") == set()


def test_discard_leaves_nothing(tmp_path):
    storage = Storage(tmp_path)
    for kind in ("tar", "json", "index.parquet", "stats.parquet"):
        storage.write(records.file("audio", "a", kind), b"x")
    records.discard(storage, "audio", "a")
    records.discard(storage, "audio", "a")
    assert storage.names("columns/audio") == set()


def test_a_damaged_record_is_named():
    with pytest.raises(ValueError, match="here.json is not a record"):
        records.parse(b"{", "here.json")
    with pytest.raises(ValueError, match="here.json is not a record"):
        records.parse(b'{"shard": "a"}', "here.json")


def test_a_changed_field_is_noticed_and_run_may_differ():
    record = records.Record("s", "c", {"a": 1.5}, 1, 1, [], 1, 320, 1, 10, "ab", None, {}, "cpu", run={"host": "x"})
    data = record.to_bytes()
    assert records.parse(data, "r.json") == record
    assert records.parse(data.replace(b'"host": "x"', b'"host": "y"'), "r.json").run == {"host": "y"}
    with pytest.raises(ValueError, match="r.json is damaged"):
        records.parse(data.replace(b"1.5", b"2.5"), "r.json")
