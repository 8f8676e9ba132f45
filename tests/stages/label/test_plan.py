"""plan: whole recordings, each planned once; what is planned never moves; tombstones; splits."""

import hashlib
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.label.plan import next_fit, plan, shard_name
from stages.shards.catalog import CATALOG, live, read_plan, shard_slices, write_parquet


def digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def kept(name: str, duration_s: float = 200.0, **values) -> dict:
    row = {
        "recording": digest(name, 16),
        "status": "kept",
        "path": f"/m/{name}",
        "path_bytes": f"/m/{name}".encode(),
    }
    row |= {
        "size": 1000 + len(name),
        "mtime_ns": 1,
        "quick": digest("q" + name, 64),
        "duration_s": duration_s,
    }
    return row | values


class Plans:
    """Plans of one corpus, each after the other."""

    def __init__(self, folder: Path, **options):
        self.folder, self.path = folder, folder / "plan.parquet"
        self.options = {"shard_minutes": 10, "validation_share": 0.1, **options}

    def __call__(self, rows: list[dict], **options) -> dict[str, dict]:
        rows = sorted(rows, key=lambda r: r["path_bytes"])
        catalog = self.folder / "catalog.parquet"
        write_parquet(catalog, CATALOG, [pa.RecordBatch.from_pylist(rows, schema=CATALOG)])
        self.summary = plan(self.path, catalog, self.path, **{**self.options, **options})
        self.table = read_plan(self.path)
        self.rows = {r["recording"]: r for r in self.table.to_pylist()}
        assert len(self.rows) == self.table.num_rows, "one row a recording"
        assert self.table["order"].to_pylist() == sorted(set(self.table["order"].to_pylist()))
        shard_slices(self.table)  # rows of a shard are neighbours
        alive = {r for r, row in self.rows.items() if row["tombstone"] is None}
        assert alive == {r["recording"] for r in rows if r["status"] == "kept"}, (
            "every kept one is planned, once"
        )
        assert self.summary.recordings == len(alive) == live(self.table).num_rows
        return self.rows


@pytest.fixture
def plans(tmp_path) -> Plans:
    return Plans(tmp_path)


names = st.lists(st.text("abcdefgh", min_size=1, max_size=4), max_size=30, unique=True)
lengths = st.floats(0, 2000)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.tuples(names, lengths), min_size=1, max_size=3))
def test_adding_files_never_shifts_what_is_planned(steps):
    with tempfile.TemporaryDirectory() as folder:
        plans, corpus, before = Plans(Path(folder)), {}, {}
        for names, length in steps:
            corpus = {n: kept(n, length) for n in names} | corpus
            rows = plans(list(corpus.values()))
            assert {k: rows[k] for k in before} == before
            assert plans.summary.new_recordings == len(rows) - len(before)
            assert len(corpus) < 2 or plans.summary.valid >= 1
            before = rows
            again = plans.path.read_bytes()
            plans(list(corpus.values()))
            assert plans.path.read_bytes() == again, "nothing new, the same bytes"


@settings(max_examples=6, deadline=None)
@given(names, st.data())
def test_removing_and_adding_back_restores(names, data):
    with tempfile.TemporaryDirectory() as folder:
        plans = Plans(Path(folder))
        before = plans([kept(n) for n in names])
        whole = plans.path.read_bytes()
        gone = data.draw(st.sets(st.sampled_from(names))) if names else set()
        rows = plans([kept(n) for n in names if n not in gone])
        assert {r for r, row in rows.items() if row["tombstone"] == "vanished"} == {
            digest(n, 16) for n in gone
        }
        assert {k: {**row, "tombstone": None} for k, row in rows.items()} == before
        plans([kept(n) for n in names])
        assert plans.path.read_bytes() == whole


@given(st.lists(st.floats(0, 2000), max_size=60))
def test_a_shard_is_closed_only_when_the_next_recording_would_not_fit(lengths):
    starts = next_fit(lengths, 600)
    shards = [lengths[a:b] for a, b in zip(starts, [*starts, len(lengths)][1:], strict=True)]
    assert [x for shard in shards for x in shard] == lengths
    assert all(sum(shard) <= 600 or len(shard) == 1 for shard in shards)
    assert all(sum(one) + two[0] > 600 for one, two in zip(shards, shards[1:], strict=False))


def test_a_plan_depends_on_the_corpus_alone(tmp_path):
    files = []
    for order in (1, -1):
        folder = tmp_path / str(order)
        folder.mkdir()
        plans = Plans(folder)
        plans([kept(str(i)) for i in range(50)][::order])
        files.append(plans.path.read_bytes())
    assert files[0] == files[1]


def test_names_come_from_ids_and_neighbours_are_mixed(plans):
    rows = plans([kept(f"album/{i:02d}") for i in range(30)])
    assert list(rows) == sorted(rows)
    for shard, (start, count) in shard_slices(plans.table).items():
        members = plans.table.slice(start, count)["recording"].to_pylist()
        assert shard == shard_name((m, 0) for m in members)
        assert len(shard) == 13 and shard[0] == "s"


def test_unknown_durations_are_taken_from_the_size(plans):
    plans([kept(str(i), 0.0, size=16_000 * 300) for i in range(10)])
    assert plans.summary.shards == 5


def test_the_fate_of_what_is_gone(plans):
    first = plans([kept(n) for n in ("stays", "edited", "gone", "excluded", "copy", "unreadable", "broken")])
    other = kept("new bytes", path_bytes=b"/m/edited")
    copy = kept("copy") | {"status": "duplicate", "duplicate_of": digest("stays", 16)}
    out = kept("excluded") | {"status": "excluded", "recording": None, "quick": None}
    unreadable = kept("unreadable", recording="x", reason="unreadable: Input/output error") | {
        "status": "rejected"
    }
    broken = kept("broken", recording="y", reason="End of file") | {"status": "rejected"}
    rows = plans([kept("stays"), other, copy, out, unreadable, broken])
    fates = {
        "stays": None,
        "edited": "edited",
        "gone": "vanished",
        "excluded": "excluded",
        "copy": "duplicate",
    }
    fates |= {"unreadable": "vanished", "broken": "edited", "new bytes": None}
    assert {name: rows[digest(name, 16)]["tombstone"] for name in fates} == fates
    assert plans.summary.tombstoned == {"duplicate": 1, "edited": 2, "excluded": 1, "vanished": 2}
    assert rows[digest("new bytes", 16)]["shard"] not in {r["shard"] for r in first.values()}
    rows = plans([kept("stays"), other])
    assert rows[digest("copy", 16)]["tombstone"] == "duplicate", "a reason once given stays"


def test_a_moved_file_is_found_where_it_is(plans):
    first = plans([kept("a"), kept("b")])
    rows = plans([kept("a", path="/n/a", path_bytes=b"/n/a", mtime_ns=9, sha256="s"), kept("b")])
    row = rows[digest("a", 16)]
    assert (row["path"], row["path_bytes"], row["mtime_ns"], row["sha256"]) == ("/n/a", b"/n/a", 9, "s")
    unmoved = {"path": "/m/a", "path_bytes": b"/m/a", "mtime_ns": 1, "sha256": None}
    assert row | unmoved == first[row["recording"]]


def test_retry_moves_to_new_shards_and_keeps_the_rest(plans):
    corpus = [kept(str(i)) for i in range(9)] + [kept("long", 5000)]
    first = plans(corpus)
    gone = digest("8", 16)
    again = {digest("3", 16), digest("long", 16), gone, "never planned"}
    rows = plans([r for r in corpus if r["recording"] != gone], retry=again)
    assert plans.summary.replanned == 2
    moved = again & {r for r in rows if rows[r]["attempt"] == 1}
    assert moved == {digest("3", 16), digest("long", 16)}
    assert {k: r for k, r in rows.items() if k not in again} == {
        k: r for k, r in first.items() if k not in again
    }
    old_shards = {r["shard"] for r in first.values()}
    for recording in moved:
        assert rows[recording]["shard"] not in old_shards, "not even alone: its finished shard has that name"
        assert rows[recording]["split"] == first[recording]["split"]
    rows = plans(corpus, retry=moved)
    assert {rows[r]["attempt"] for r in moved} == {2}


def test_split_share_and_permanence(plans):
    corpus = [kept(str(i)) for i in range(2000)]
    rows = plans(corpus)
    assert 150 < plans.summary.valid < 250
    splits = {k: r["split"] for k, r in rows.items()}
    rows = plans(corpus, validation_share=0.5)
    assert {k: r["split"] for k, r in rows.items()} == splits


def test_at_least_one_is_validation(plans):
    plans([kept("alone")], validation_share=1e-9)
    assert plans.summary.valid == 0
    rows = plans([kept(n) for n in ("alone", "second")], validation_share=1e-9)
    assert {n: rows[digest(n, 16)]["split"] for n in ("alone", "second")} == {
        "alone": "train",
        "second": "valid",
    }
    plans([kept(n) for n in ("alone", "second", "third")], validation_share=1e-9)
    assert plans.summary.valid == 1
    plans([kept(n) for n in ("alone", "third")], validation_share=1e-9)
    assert plans.summary.valid == 0, "what was trained on never becomes validation"
    rows = plans([kept(n) for n in ("alone", "third", "fourth")], validation_share=1e-9)
    assert rows[digest("fourth", 16)]["split"] == "valid"
    assert plans([kept("x"), kept("y")], validation_share=0) and plans.summary.valid == 0


def test_copies_and_versions_share_a_split(plans):
    corpus = [kept(str(i)) for i in range(20)]
    splits = {r["recording"]: r["split"] for r in plans(corpus, validation_share=0.5).values()}
    assert set(splits.values()) == {"train", "valid"}
    renamed = [kept("r" + r["path"], quick=r["quick"], size=r["size"]) for r in corpus]
    edited = [kept("e" + r["path"], path_bytes=r["path_bytes"]) for r in corpus]
    rows = plans(renamed + edited, validation_share=0.5)
    for row, one, two in zip(corpus, renamed, edited, strict=True):
        assert rows[one["recording"]]["split"] == rows[two["recording"]]["split"] == splits[row["recording"]]
    # Equal quick hashes of different bytes are no copies: their splits are drawn, not inherited.
    stems = [kept(f"stem {i}", quick="same", size=5, sha256=str(i)) for i in range(40)]
    plans(renamed + edited + stems[:1], validation_share=0.5)
    rows = plans(renamed + edited + stems, validation_share=0.5)
    assert {rows[s["recording"]]["split"] for s in stems} == {"train", "valid"}


def test_impossible_values_and_files(tmp_path):
    plans = Plans(tmp_path)
    for name, value in (("shard_minutes", 0), ("shard_minutes", float("nan")), ("validation_share", 1.0)):
        with pytest.raises(ValueError, match=f"plan.{name} is"):
            plans([kept("a")], **{name: value})
    plans.path.write_bytes(b"not a plan")
    with pytest.raises(ValueError, match="plan.parquet"):
        plans([kept("a")])
    assert plans.path.read_bytes() == b"not a plan"


def draw(recording: str) -> float:
    return int(digest("split " + recording, 15), 16) / 16**15


def test_a_split_is_the_share_below_which_the_hash_of_the_id_lies(plans):
    corpus = [kept(str(i)) for i in range(60)]
    draws = {r["recording"]: draw(r["recording"]) for r in corpus}
    share = sorted(draws.values())[20]  # below the share, not at it
    rows = plans(corpus, validation_share=share)
    assert {r for r, row in rows.items() if row["split"] == "valid"} == {
        r for r, d in draws.items() if d < share
    }
    assert plans.summary.valid == 20


def test_the_only_validation_recording_is_the_one_of_the_lowest_draw(plans):
    corpus = [kept(str(i)) for i in range(9)]
    rows = plans(corpus, validation_share=1e-9)
    lowest = min(rows, key=draw)
    assert [r for r, row in rows.items() if row["split"] == "valid"] == [lowest] and lowest != min(rows)
    rejected = kept("torn", reason="torn") | {"status": "rejected"}
    plans.path.unlink()
    plans([kept("alone"), rejected], validation_share=1e-9)
    assert plans.summary.valid == 0, "one recording beside a rejected file is alone"


def test_order_counts_on_and_shards_follow_it(plans):
    first = plans([kept(str(i)) for i in range(5)])
    assert [first[r]["order"] for r in sorted(first)] == [0, 1, 2, 3, 4]
    rows = plans([kept(str(i)) for i in range(8)], retry=[min(first)])
    new = sorted({min(first)} | (rows.keys() - first.keys()))
    assert [rows[r]["order"] for r in new] == [5, 6, 7, 8]
    assert rows[min(first)]["attempt"] == 1 and plans.summary.new_recordings == 3


def test_a_split_is_inherited_from_the_content_before_the_place_and_from_the_first_of_equals(plans):
    corpus = [kept(str(i)) for i in range(20)]
    splits = {r["recording"]: r["split"] for r in plans(corpus, validation_share=0.5).values()}
    by_split = {split: [r for r in corpus if splits[r["recording"]] == split] for split in ("train", "valid")}
    moved = []
    for name, content, place in (("x", "train", "valid"), ("y", "valid", "train")):
        old = by_split[content][0]
        moved.append(
            (
                content,
                kept(name, size=old["size"], quick=old["quick"], path_bytes=by_split[place][0]["path_bytes"]),
            )
        )
    # Another size or another quick hash is other content, whatever the rest says.
    old = by_split["valid"][1]
    others = [kept(f"o{i}", size=old["size"] + 1, quick=old["quick"]) for i in range(12)]
    rest = [kept(f"p{i}", size=old["size"]) for i in range(12)]
    rows = plans([row for _, row in moved] + others + rest, validation_share=0.5)
    assert [rows[row["recording"]]["split"] for _, row in moved] == [content for content, _ in moved]
    for drawn in (others, rest):
        assert all((rows[r["recording"]]["split"] == "valid") == (draw(r["recording"]) < 0.5) for r in drawn)
        assert {rows[r["recording"]]["split"] for r in drawn} == {"train", "valid"}
    # Versions of one path: the last one's split. Copies: the first one's.
    last = kept("z", path_bytes=moved[0][1]["path_bytes"])
    assert plans([last], validation_share=0.5)[last["recording"]]["split"] == moved[0][0]
    assert plans.summary.recordings == 1


def test_the_summary_counts_what_lives(plans):
    corpus = [kept(str(i), 3600.0) for i in range(10)]
    rows = plans(corpus, validation_share=0.5)
    valid = sum(row["split"] == "valid" for row in rows.values())
    assert 0 < valid < 10
    summary = plans.summary
    assert (summary.hours, summary.valid_hours, summary.valid) == (10.0, float(valid), valid)
    assert (summary.shards, summary.new_shards, summary.new_recordings, summary.replanned) == (10, 10, 10, 0)
    assert summary.tombstoned == {}
    plans(corpus[:4] + [kept("new", 1800.0)], retry=[corpus[0]["recording"]], validation_share=0.5)
    summary = plans.summary
    assert (summary.recordings, summary.shards, summary.hours) == (5, 5, 4.5)
    assert (summary.new_shards, summary.new_recordings, summary.replanned) == (2, 1, 1)
    assert summary.tombstoned == {"vanished": 6}


def test_a_shard_is_named_by_its_members_and_their_attempts():
    assert shard_name([("a", 0), ("b", 2)]) == "s" + digest("a\nb#2", 12)


def test_minutes_are_of_sixty_seconds_and_the_share_may_be_none(plans):
    plans([kept(str(i), 60.0) for i in range(6)], shard_minutes=2, validation_share=0)
    assert (plans.summary.shards, plans.summary.valid) == (3, 0)
    plans.path.unlink()
    plans([kept(str(i), 61.0) for i in range(6)], shard_minutes=2)
    assert plans.summary.shards == 6
