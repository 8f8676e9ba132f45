import dataclasses
import errno
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.shards import record as records
from stages.shards.record import canonical, recipe8
from stages.shards.storage import Storage

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


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
    for kind in ("tar", "json", "index.parquet", "stats.parquet", "sums.parquet"):
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
    record = records.Record(
        "s", "c", {"a": 1.5}, 1, 1, [], 1, 320, 1, 10, "ab", None, {}, "cpu", run={"host": "x"}
    )
    data = record.to_bytes()
    assert records.parse(data, "r.json") == record
    assert records.parse(data.replace(b'"host": "x"', b'"host": "y"'), "r.json").run == {"host": "y"}
    with pytest.raises(ValueError, match="r.json is damaged"):
        records.parse(data.replace(b"1.5", b"2.5"), "r.json")


WHOLE = records.Record(
    "s",
    "codes-x",
    {"a": 1.5},
    3,
    2,
    [{"recording": "r", "path": "p", "reason": "odd"}],
    4,
    1280,
    4,
    2048,
    "ab",
    "cd",
    {"numpy": "2"},
    "cpu",
    {"index.parquet": "ef"},
    {"codebooks": 8},
    {"host": "x"},
)
OTHER = {int: lambda v: v + 1, str: lambda v: v + "x", list: lambda v: [], dict: lambda v: v | {"more": 1}}


def test_a_record_is_read_as_it_was_written():
    data = WHOLE.to_bytes()
    assert records.parse(data, "r.json") == WHOLE
    assert set(json.loads(data)) == {f.name for f in dataclasses.fields(records.Record)} | {"record_sha256"}


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(records.Record) if f.name != "run"] + ["record_sha256"]
)
def test_every_field_of_a_record_is_vouched_for(name):
    fields = json.loads(WHOLE.to_bytes())
    changed = fields | {name: OTHER[type(fields[name])](fields[name])}
    assert changed != fields
    lost = {k: v for k, v in fields.items() if k != name}
    for wrong in (
        (changed, lost, fields | {name: None}) if name != "format" else (lost, fields | {name: None})
    ):
        with pytest.raises(ValueError, match="r.json is (damaged|not a record)"):
            records.parse(json.dumps(wrong).encode(), "r.json")
    assert records.parse(json.dumps(fields).encode(), "r.json") == WHOLE


def test_a_rejects_words_are_vouched_for():
    data = WHOLE.to_bytes()
    for old, new in ((b'"odd"', b'"off"'), (b'"recording": "r"', b'"recording": "q"')):
        with pytest.raises(ValueError, match="r.json is damaged"):
            records.parse(data.replace(old, new), "r.json")


def test_another_format_is_refused_by_its_number():
    newer = json.loads(dataclasses.replace(WHOLE, format=2).to_bytes())
    for fields in (newer, newer | {"invented": 1}, {k: v for k, v in newer.items() if k != "bytes"}):
        with pytest.raises(records.UnknownFormat) as error:
            records.parse(json.dumps(fields).encode(), "r.json")
        assert str(error.value) == (
            "r.json has format 2; this version reads 1: use the version of overtone that wrote it, or a "
            "newer one; nothing was changed"
        )


@pytest.mark.parametrize(
    "data",
    [b"[]", b"3", b'{"record_sha256": "x"}', WHOLE.to_bytes().replace(b'"kept"', b'"held"'), b"\xff\xfe"],
)
def test_other_json_is_no_record(data):
    with pytest.raises(ValueError, match="r.json is not a record"):
        records.parse(data, "r.json")


def test_a_discarded_shard_loses_its_record_first(tmp_path, monkeypatch):
    """A record that is left while the tar is gone would say finished."""
    storage, gone = Storage(tmp_path), []
    monkeypatch.setattr(Storage, "delete", lambda self, name: gone.append(name))
    records.discard(storage, "audio", "a")
    assert gone[0] == "columns/audio/a.json" and sorted(gone[1:]) == [
        f"columns/audio/a.{kind}" for kind in ("index.parquet", "stats.parquet", "sums.parquet", "tar")
    ]


def test_a_record_that_cannot_be_read_is_no_damage(tmp_path):
    storage = Storage(tmp_path)
    with pytest.raises(OSError) as raised:
        records.read(storage, "audio", "a")
    assert raised.value.errno == errno.ENOENT
    storage.write("columns/codes-x/s.json", WHOLE.to_bytes())
    assert records.read(storage, "codes-x", "s") == WHOLE
    storage.write("columns/codes-x/s.json", b"{")
    with pytest.raises(ValueError, match=f"{tmp_path}/columns/codes-x/s.json is not a record"):
        records.read(storage, "codes-x", "s")


def test_names_of_recipes_stay_what_they_are():
    """They name the columns of every OUT there is."""
    for recipe, text in (
        ({"b": 1.0, "a": [True, None, "x"]}, '{"a":[true,null,"x"],"b":1}'),
        ({"a": (0.5, -2.0)}, '{"a":[0.5,-2]}'),
        ({10: 1, 2: 2}, '{"10":1,"2":2}'),
    ):
        assert recipe8(recipe) == hashlib.sha256(text.encode()).hexdigest()[:8]
    assert (
        records.folder("audio") == "columns/audio"
        and records.file("audio", "s1", "tar") == "columns/audio/s1.tar"
    )


@pytest.mark.parametrize(
    "recipe, words",
    [
        ({"a": {"b": float("inf")}}, "recipe.a.b is inf: it has no stable hash"),
        ({"a": [1, -float("inf")]}, r"recipe.a\[1\] is -inf: it has no stable hash"),
        ({"a": (float("nan"),)}, r"recipe.a\[0\] is nan: it has no stable hash"),
        ({"a": {"b": [object()]}}, r"recipe.a.b\[0\] is a object: it has no stable hash"),
    ],
)
def test_a_value_without_a_stable_hash_is_named(recipe, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        canonical(recipe)


def test_keys_become_strings_and_types_stay():
    assert canonical({2: (1.0, True)}) == {"2": [1, True]}
    assert type(canonical(2.0)) is int and canonical(True) is True


def test_a_record_is_text_that_people_read_and_tools_compare():
    text = WHOLE.to_bytes().decode()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
