"""Which recording is a file? Every rule by itself, with files that are only described: no audio, no
processes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.label.scan.probing import recording_id
from stages.shards.catalog import CATALOG
from tests.stages.label.described import File, Scans


@pytest.fixture
def scans(tmp_path) -> Scans:
    return Scans(tmp_path)


A, B = File("a"), File("b", ends="other ends")


class TestMoved:
    """The folder has moved, so every path is new; names below the root, and so ids, are as before."""

    @pytest.fixture
    def labelled(self, scans):
        assert scans(A, B) == [(A.id, "kept"), (B.id, "kept")]
        return {A.id: A.sha256, B.id: B.sha256}

    def test_a_moved_file_keeps_its_id_and_is_not_read_whole(self, scans, labelled):
        assert scans(A.but(root="/n"), B, known=labelled) == [(A.id, "kept"), (B.id, "kept")]
        assert scans.hashed == [] and scans.probed == [b"/n/a"]

    def test_with_its_middle_edited_too_it_is_another_recording(self, scans, labelled):
        edited = A.but(root="/n", middle="new", mtime_ns=2)
        assert scans(edited, B, known=labelled) == [(edited.sha_id, "kept"), (B.id, "kept")]
        assert edited.sha_id != A.id
        assert scans(edited, B, known=labelled) == [(edited.sha_id, "kept"), (B.id, "kept")], "and stays so"

    def test_with_an_edit_that_kept_the_time_it_is_taken_for_the_same_as_where_it_lay(self, scans, labelled):
        """Size and time say that a file is unchanged; only another time has the middle read."""
        assert scans(A.but(middle="new"), B, known=labelled)[0] == (A.id, "kept")
        assert scans(A.but(middle="new", root="/n"), B, known=labelled)[0] == (A.id, "kept")
        assert scans.hashed == []

    def test_touched_on_its_way_it_is_read_and_keeps_its_id(self, scans, labelled):
        assert scans(A.but(root="/n", mtime_ns=2), B, known=labelled)[0] == (A.id, "kept")
        assert scans.hashed == [b"/n/a"]

    @pytest.mark.parametrize("change", [{"ends": "new"}, {"size": 8}, {"name": "c"}])
    def test_another_beginning_size_or_name_is_another_recording(self, scans, labelled, change):
        other = A.but(root="/n", **change)
        assert scans(other, B, known=labelled)[0] == (other.id, "kept")
        assert other.id != A.id and scans.hashed == []

    def test_a_file_that_is_still_there_was_copied_not_moved(self, scans, labelled):
        copy = A.but(root="/n")
        assert scans(A, copy, B, known=labelled) == [(A.id, "kept"), (A.id, "duplicate"), (B.id, "kept")]
        assert scans.rows[copy.place]["duplicate_of"] == A.id
        other = A.but(root="/o", middle="new")
        assert scans(A, copy, other, B, known=labelled)[2] == (other.sha_id, "kept")

    def test_of_two_alike_that_are_gone_none_is_taken_for_the_moved_one(self, scans):
        one, two = A, A.but(root="/m2", middle="another")
        assert scans(one, two) == [(one.id, "kept"), (two.sha_id, "kept")]
        known = {one.id: one.sha256, two.sha_id: two.sha256}
        for moved in (one.but(root="/n"), two.but(root="/n")):
            assert scans(one, two, known=known) == [(one.id, "kept"), (two.sha_id, "kept")]
            assert scans(moved, known=known)[0] == (
                one.id if moved.middle == one.middle else two.sha_id,
                "kept",
            )
            assert scans.hashed == [b"/n/a"]
            scans.catalog.unlink()

    def test_the_kept_one_of_two_copies_stays_the_kept_one(self, scans):
        """Whatever becomes of either: labels exist for it alone."""
        copy = A.but(root="/c")  # sorts before it
        scans(A)
        for one, other in (
            (A, copy), (A, copy), (A, copy.but(mtime_ns=2)), (A.but(mtime_ns=2), copy.but(mtime_ns=2)),
            (A.but(mtime_ns=2, root="/n"), copy.but(mtime_ns=2)),
        ):  # fmt: skip
            assert scans(one, other) == [(A.id, "kept"), (A.id, "duplicate")], (one, other)
        assert scans(other) == [(A.id, "kept")], "until it is gone"

    def test_a_copy_that_moved_is_not_read_again(self, scans):
        copy = A.but(name="d")
        scans(A, copy)
        assert scans(A, copy.but(root="/n")) == [(A.id, "kept"), (copy.id, "duplicate")]
        assert scans.hashed == []

    def test_moved_over_another_version_it_is_read_as_what_was_touched(self, scans):
        one, two = A, A.but(root="/m2", middle="another", mtime_ns=5)
        scans(one, two)
        assert scans(two.but(root="/m"), known={one.id: one.sha256}) == [(two.sha_id, "kept")]
        assert scans.hashed == [b"/m/a"]

    def test_a_moved_file_with_an_id_of_its_own_content_keeps_that(self, scans):
        one, two = A, A.but(root="/m2", middle="another", mtime_ns=5)
        scans(one, two)
        known = {one.id: one.sha256, two.sha_id: two.sha256}
        assert scans(one, two.but(root="/n"), known=known) == [(one.id, "kept"), (two.sha_id, "kept")]
        assert scans.rows[b"/n/a"]["sha256"] == two.sha256 and scans.hashed == [], "known already"
        scans(two.but(root="/n"))
        assert scans(two.but(root="/o")) == [(two.sha_id, "kept")], "though the other one is gone"

    def test_what_was_rejected_has_no_id_to_give_away(self, scans):
        scans(A.but(reason="torn"), B)
        assert scans(A.but(root="/n"), B, known={A.id: "of bytes that were labelled once"})[0] == (
            A.sha_id,
            "kept",
        )
        assert scans.hashed == [b"/n/a"]


class TestOneId:
    """Two contents that share name, size and ends: one has the id without its sha256."""

    def test_the_one_that_had_the_id_keeps_it(self, scans):
        scans(A)
        other = A.but(root="/c", middle="new")  # sorts before it
        for one in (A, A, A.but(mtime_ns=2)):
            assert scans(one, other) == [(A.id, "kept"), (other.sha_id, "kept")]
        scans.catalog.unlink()
        scans(A)
        assert scans(A.but(mtime_ns=2), other) == [(A.id, "kept"), (other.sha_id, "kept")]

    def test_else_one_that_was_there_before_goes_before_a_new_one(self, scans):
        copy = A.but(root="/n")
        scans(A, copy)
        edited, other = A.but(middle="edited", mtime_ns=2), A.but(root="/c", middle="new")
        ids = [(edited.sha_id, "kept"), (A.id, "kept"), (other.sha_id, "kept")]
        assert scans(edited, copy, other) == ids

    def test_copies_of_one_content_all_have_its_id(self, scans):
        copies = [A.but(root=f"/n{i}") for i in range(3)]
        assert scans(A, *copies) == [(A.id, "kept"), *[(A.id, "duplicate")] * 3]
        assert [scans.rows[f.place]["duplicate_of"] for f in (A, *copies)] == [None, A.id, A.id, A.id]


class TestTouched:
    """The same path, size and ends, another time."""

    def test_the_same_bytes_keep_the_id(self, scans):
        scans(A)
        touched = A.but(mtime_ns=2)
        assert scans(touched, known={A.id: A.sha256}) == [(A.id, "kept")]
        assert scans.hashed == [A.place] and scans.rows[A.place]["sha256"] == A.sha256
        assert scans.rows[A.place]["mtime_ns"] == 2

    def test_an_edited_middle_is_another_recording_where_anyone_knows_the_old_bytes(self, scans):
        edited = A.but(middle="new", mtime_ns=2)
        scans(A)
        assert scans(edited, known={A.id: A.sha256}) == [(edited.sha_id, "kept")]
        scans.catalog.unlink()
        twin = A.but(root="/twin")
        scans(A, twin)  # a possible duplicate: both were read whole
        assert scans(edited, twin) == [(edited.sha_id, "kept"), (A.id, "kept")]

    def test_the_catalog_of_the_labels_goes_before_that_of_the_last_scan(self, scans):
        """The last scan saw bytes that were never labelled under this id."""
        scans(A)
        edited = A.but(middle="new", mtime_ns=2)
        assert scans(edited) == [(A.id, "kept")], "nothing labelled, nobody knows what it was"
        assert scans(edited.but(mtime_ns=3), known={A.id: A.sha256}) == [(edited.sha_id, "kept")]
        assert scans(A.but(mtime_ns=4), known={A.id: A.sha256}) == [(A.id, "kept")], (
            "the first bytes are back"
        )

    def test_an_id_of_its_content_is_kept_while_the_content_is(self, scans):
        edited = A.but(middle="new", mtime_ns=2)
        scans(A)
        scans(edited, known={A.id: A.sha256})
        assert scans(edited.but(mtime_ns=3), known={A.id: A.sha256}) == [(edited.sha_id, "kept")]
        assert scans(edited.but(mtime_ns=4)) == [(edited.sha_id, "kept")], "even if the labels are gone"
        again = edited.but(mtime_ns=5, middle="newer")
        assert scans(again) == [(again.sha_id, "kept")]

    def test_new_ends_or_another_size_are_a_new_recording_without_reading_it_whole(self, scans):
        scans(A)
        for change in ({"ends": "new"}, {"size": 8}):
            other = A.but(mtime_ns=2, **change)
            assert scans(other, known={A.id: A.sha256}) == [(other.id, "kept")]
            assert scans.hashed == [] and other.id != A.id
            scans(A)

    def test_what_cannot_be_read_whole_is_rejected_for_now(self, scans):
        scans(A)
        broken = A.but(mtime_ns=2, error="unreadable: disk")
        assert scans(broken) == [(A.id, "rejected")]
        assert scans.rows[A.place]["reason"] == "unreadable: disk"
        assert scans(broken.but(error=None), known={A.id: A.sha256}) == [(A.id, "kept")], "tried again"

    def test_what_was_rejected_has_no_bytes_to_compare_with(self, scans):
        scans(A.but(reason="torn"))
        assert scans(A.but(mtime_ns=2)) == [(A.id, "kept")] and scans.hashed == []

    def test_what_is_rejected_now_is_not_read_whole(self, scans):
        scans(A)
        torn = A.but(mtime_ns=2, reason="torn")
        assert (
            scans(torn, A.but(root="/c", reason="torn"), known={A.id: A.sha256}) == [(A.id, "rejected")] * 2
        )
        assert scans.hashed == []
        other = A.but(root="/c", mtime_ns=3)
        assert scans(torn, other) == [(A.id, "rejected"), (A.id, "kept")] and scans.hashed == []

    def test_a_copy_with_an_edited_middle_is_another_recording_though_the_original_is_gone(self, scans):
        copy = A.but(root="/c")
        scans(A, copy)
        edited = copy.but(middle="new", mtime_ns=2)
        assert scans(edited) == [(edited.sha_id, "kept")]


class TestKnown:
    def test_a_new_path_with_an_id_that_was_labelled_must_hold_those_bytes(self, scans):
        other = A.but(middle="new")
        assert scans(A, known={A.id: A.sha256}) == [(A.id, "kept")] and scans.hashed == [A.place]
        scans.catalog.unlink()
        assert scans(other, known={A.id: A.sha256}) == [(other.sha_id, "kept")]

    def test_nothing_is_read_whole_that_decides_nothing(self, scans):
        scans(A, B)
        assert scans.hashed == []
        scans(A, B, A.but(name="c", size=8))
        assert scans.hashed == []
        assert scans(A, B, A.but(name="d")) == [
            (A.id, "kept"),
            (B.id, "kept"),
            (A.but(name="d").id, "duplicate"),
        ]
        assert scans.hashed == [b"/m/a", b"/m/d"], "of the old one, too"


class TestUnchanged:
    @pytest.mark.parametrize("change", [{"size": 8}, {"mtime_ns": 2}, {"root": "/n"}])
    def test_path_size_and_time_say_that_a_file_is_the_same(self, scans, change):
        scans(A)
        scans(A)
        assert (scans.probed, scans.unchanged) == ([], 1)
        scans(A.but(**change))
        assert (len(scans.probed), scans.unchanged) == (1, 0)

    def test_facts_of_an_unchanged_file_are_kept(self, scans):
        scans(A, B.but(reason="torn"))
        before = scans.rows
        scans(A, B.but(reason="torn"))
        assert scans.rows == before and scans.probed == []
        assert scans.rows[B.place]["status"] == "rejected" and scans.rows[B.place]["reason"] == "torn"

    @pytest.mark.parametrize(
        "reason, retry, again",
        [("torn", None, False), ("torn", "ear", False), ("torn", "tor", True),
            ("torn", "all", True), ("is torn", "torn", True),
         ("unreadable: x", None, True), ("was unreadable: x", None, False)],
    )  # fmt: skip
    def test_a_rejected_file_is_tried_again_only_by_request_or_if_it_could_not_be_read(
        self, scans, reason, retry, again
    ):
        scans(A.but(reason=reason), B)
        found = scans(A, B, retry=retry)
        assert scans.probed == ([A.place] if again else [])
        assert found == [(A.id, "kept" if again else "rejected"), (B.id, "kept")]

    def test_a_file_that_became_a_folder_or_was_excluded_is_no_longer_kept(self, scans):
        scans(A, B)
        gone = A.but(problem="is a directory, not a file", size=0), B.but(excluded=True)
        ids = recording_id(b"a", 0, ""), None
        for _ in range(2):
            assert scans(*gone) == [(ids[0], "rejected"), (ids[1], "excluded")]
            assert scans.probed == [] and scans.unchanged == 0
        assert scans.rows[A.place]["reason"] == "is a directory, not a file"
        assert scans(A, B) == [(A.id, "kept"), (B.id, "kept")]
        assert scans.probed == [A.place, B.place]

    def test_what_is_excluded_has_no_other_fate(self, scans):
        assert (
            scans(A.but(problem="empty file", size=0, excluded=True), B.but(excluded=True))
            == [(None, "excluded")] * 2
        )


class TestRoots:
    def test_a_path_of_two_roots_is_one_file_with_the_name_of_the_first(self, scans):
        inner, outer = File("deep/a", path="/m/deep/a"), File("a", root="/m/deep", path="/m/deep/a")
        for first, second in ((inner, outer), (outer, inner)):
            assert scans(second.but(order=1), first)[0] == (first.id, "kept")
            later = first.but(order=1, mtime_ns=2), second.but(mtime_ns=2)
            assert scans(*later)[0] == (first.id, "kept"), "once given, a name stays"
            scans.catalog.unlink()

    def test_what_one_root_excludes_is_excluded(self, scans):
        inner, outer = File("deep/a", order=1, path="/m/deep/a"), File("a", root="/m/deep", path="/m/deep/a")
        assert scans(inner.but(excluded=True), outer)[0] == (None, "excluded")
        assert scans(inner, outer.but(excluded=True))[0] == (None, "excluded")


@pytest.mark.parametrize(
    "old_s, seconds, taken_from", [(0.5, 0.5, None), (1e9, None, "size"), (0.0, None, "size")]
)
def test_a_length_of_the_first_version_is_believed_as_far_as_the_bytes_hold_it(
    scans, old_s, seconds, taken_from
):
    scans(A)
    rows = pq.read_table(scans.catalog).drop_columns("duration_from").to_pylist()
    schema = pa.schema([field for field in CATALOG if field.name != "duration_from"])
    changed = [row | {"duration_s": old_s} for row in rows]
    pq.write_table(pa.Table.from_pylist(changed, schema=schema), scans.catalog)
    assert scans(A) == [(A.id, "kept")] and scans.probed == []
    row = scans.rows[A.place]
    assert row["duration_from"] == taken_from
    assert row["duration_s"] == pytest.approx(row["size"] / 16_000 if seconds is None else seconds)
