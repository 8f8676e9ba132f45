"""Which recording is a file? Every rule by itself, with files that are only described: no audio, no processes."""

import dataclasses
import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.label.identity import HASHED, LISTING, PROBED, Identity
from stages.label.probe import recording_id
from stages.shards.catalog import CATALOG, read_catalog, write_parquet


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class File:
    """A file as a listing and its bytes show it: `ends` is what the quick hash sees, `middle` what it does not."""

    name: str = "a"
    root: str = "/m"
    size: int = 9
    mtime_ns: int = 1
    ends: str = "ends"
    middle: str = "middle"
    reason: str | None = None  # of the probe
    problem: str | None = None  # of the listing
    excluded: bool = False
    order: int = 0  # of its root
    path: str | None = None
    error: str | None = None  # of hashing

    @property
    def place(self) -> bytes:
        return (self.path or f"{self.root}/{self.name}").encode()

    @property
    def sha256(self) -> str:
        return digest(self.ends + self.middle)

    @property
    def id(self) -> str:
        return recording_id(self.name.encode(), self.size, digest(self.ends))

    @property
    def sha_id(self) -> str:
        return recording_id(self.name.encode(), self.size, digest(self.ends), self.sha256)

    def but(self, **values) -> "File":
        return dataclasses.replace(self, **values)


class Scans:
    def __init__(self, folder):
        self.folder, self.catalog = folder, folder / "catalog.parquet"

    def __call__(self, *files: File, known=None, retry=None) -> list[tuple[str | None, str]]:
        """(id, status) of each file's path, in the order of the arguments; `known` as in `scan`."""
        known = known or {}
        listing = [
            {"path_bytes": f.place, "name_bytes": f.name.encode(), "root": f.root, "root_order": f.order, "size": f.size,
             "mtime_ns": f.mtime_ns, "problem": f.problem, "excluded": f.excluded} for f in files
        ]  # fmt: skip
        by_path = {f.place: f for f in reversed(files)}
        self._write("listing", LISTING, listing)
        with Identity(self.folder / "listing", self.catalog, self.folder, retry) as identity:
            todo = list(identity.to_probe())
            self.probed = [path for path, *_ in todo]
            total, self.unchanged = identity.counts()
            assert total == len(todo)
            self._write("probed", PROBED, [self._facts(by_path[path], *rest, known) for path, *rest in todo])
            self.hashed = [path for (path,) in identity.to_hash(self.folder / "probed")]
            hashes = [
                {"path_bytes": path, "sha256": None if by_path[path].error else by_path[path].sha256, "error": by_path[path].error}
                for path in self.hashed
            ]
            self._write("hashed", HASHED, hashes)
            write_parquet(self.catalog, CATALOG, identity.catalog(self.folder / "hashed"))
        rows = read_catalog(self.catalog).to_pylist()
        self.rows = {row["path_bytes"]: row for row in rows}
        assert len(rows) == len(self.rows) == len(by_path), "one row a path"
        assert [row["path_bytes"] for row in rows] == sorted(by_path)
        kept = [row["recording"] for row in rows if row["status"] == "kept"]
        assert len(set(kept)) == len(kept), "one id, one recording"
        return [(self.rows[f.place]["recording"], self.rows[f.place]["status"]) for f in files]

    def _write(self, name, schema, rows):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), self.folder / name)

    @staticmethod
    def _facts(file, name, size, mtime_ns, known):
        facts = {"path_bytes": file.place, "size": size, "mtime_ns": mtime_ns, "quick": digest(file.ends), "reason": file.reason,
                 "container": "wav", "codec": "pcm", "rate_hz": 8, "channels": 1, "duration_s": 1.0}  # fmt: skip
        base = recording_id(name, size, facts["quick"])
        return facts | {"base": base, "known_sha": known.get(base)}


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
            assert scans(moved, known=known)[0] == (one.id if moved.middle == one.middle else two.sha_id, "kept")
            assert scans.hashed == [b"/n/a"]
            scans.catalog.unlink()

    def test_a_moved_file_with_an_id_of_its_own_content_keeps_that(self, scans):
        one, two = A, A.but(root="/m2", middle="another", mtime_ns=5)
        scans(one, two)
        known = {one.id: one.sha256, two.sha_id: two.sha256}
        assert scans(one, two.but(root="/n"), known=known) == [(one.id, "kept"), (two.sha_id, "kept")]
        assert scans.rows[b"/n/a"]["sha256"] == two.sha256, "known already, not read again"

    def test_what_was_rejected_has_no_id_to_give_away(self, scans):
        scans(A.but(reason="torn"), B)
        assert scans(A.but(root="/n"), B, known={A.id: "of bytes that were labelled once"})[0] == (A.sha_id, "kept")
        assert scans.hashed == [b"/n/a"]


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
        assert scans(A.but(mtime_ns=4), known={A.id: A.sha256}) == [(A.id, "kept")], "the first bytes are back"

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
        assert scans(A, B, A.but(name="d")) == [(A.id, "kept"), (B.id, "kept"), (A.but(name="d").id, "duplicate")]
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
        [("torn", None, False), ("torn", "ear", False), ("torn", "tor", True), ("torn", "all", True), ("unreadable: x", None, True),
         ("was unreadable: x", None, False)],
    )  # fmt: skip
    def test_a_rejected_file_is_tried_again_only_by_request_or_if_it_could_not_be_read(self, scans, reason, retry, again):
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


class TestRoots:
    def test_a_path_of_two_roots_is_one_file_with_the_name_of_the_first(self, scans):
        inner = File("deep/a", order=1, path="/m/deep/a")
        outer = File("a", root="/m/deep", order=0, path="/m/deep/a")
        assert scans(inner, outer)[0] == (outer.id, "kept")
        assert scans(inner.but(order=0), outer.but(order=1))[0] == (outer.id, "kept"), "once given, a name stays"

    def test_what_one_root_excludes_is_excluded(self, scans):
        inner, outer = File("deep/a", order=1, path="/m/deep/a"), File("a", root="/m/deep", path="/m/deep/a")
        assert scans(inner.but(excluded=True), outer)[0] == (None, "excluded")
        assert scans(inner, outer.but(excluded=True))[0] == (None, "excluded")
