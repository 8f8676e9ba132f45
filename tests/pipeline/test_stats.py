"""`overtone stats` of an OUT on an object store, and its message for a place that is none."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from stages.label.rows import SEGMENTS
from stages.shards.storage import Storage
from tests.object_store import served
from tests.pipeline.report import synthetic

REMOTE = "s3://labels/some/out"


@pytest.fixture(scope="module")
def store():
    with served("labels"):
        yield


def put(folder: Path, place: str) -> Storage:
    remote = Storage(place)
    for path in folder.rglob("*"):
        if path.is_file():
            remote.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return remote


def as_json(capsys, *arguments: str) -> dict:
    assert main(["stats", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def rounded(value):
    """Sums over rows are added in any order: floats are compared to nine digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


@pytest.fixture(scope="module")
def remote(store, labelled) -> Storage:
    return put(labelled, REMOTE)


class TestOnAnObjectStore:
    def test_the_numbers_are_those_of_the_local_folder(self, remote, labelled, capsys):
        there, here = as_json(capsys, REMOTE), as_json(capsys, str(labelled))
        assert there.pop("out") == REMOTE and here.pop("out") == str(labelled)
        assert rounded(there) == rounded(here)
        shard = here["slowest_files"][0]["shard"]
        assert rounded(as_json(capsys, REMOTE, "--shard", shard)) == rounded(
            as_json(capsys, str(labelled), "--shard", shard)
        )

    def test_the_page_is_written_there(self, remote, labelled, capsys):
        assert main(["stats", REMOTE]) == 0
        assert f"page: {REMOTE}/report/index.html" in capsys.readouterr().out
        html = remote.read("report/index.html").decode()
        assert REMOTE in html and html.count("<audio") >= 10, "the sound was read from the tars there"

    def test_it_is_compared_with_a_local_one(self, remote, labelled, capsys):
        assert main(["stats", REMOTE, str(labelled)]) == 0
        shown = capsys.readouterr().out
        assert "Compared" in shown and REMOTE in shown

    @pytest.mark.parametrize("place", ["s3://labels/none", "s3://nobody/out"])
    def test_a_place_without_labels_is_a_mistake(self, remote, place, capsys):
        assert main(["stats", place]) == 2
        assert_one_sentence(capsys.readouterr().err, place, "holds no labels")

    def test_many_duplicates_are_named_in_the_condition(self, store, tmp_path, capsys):
        same = 'UPDATE segments SET fingerprint = printf(\'%048x\', "index" + 7) WHERE "index" < 4'
        local = synthetic.out(tmp_path, 20, changes=[same])
        put(local, "s3://labels/copies")
        odd = {o["what"]: o for o in as_json(capsys, "s3://labels/copies")["worth_a_look"]}
        assert (
            odd["near-duplicates"]["recordings"] == 20 * 3 - 1
            and "read_csv" not in odd["near-duplicates"]["where"]
        )


def assert_one_sentence(shown: str, *words: str) -> None:
    assert shown.startswith("overtone: ") and shown.count("\n") == 1 and "Traceback" not in shown
    for one in words:
        assert one in shown


class TestWhatIsNoOut:
    """Alone or compared with a good one, first or second: one sentence and exit code 2."""

    @pytest.fixture(params=["alone", "first", "second"])
    def ask(self, request, labelled, capsys):
        def ask(place) -> str:
            places = {"alone": [place], "first": [place, labelled], "second": [labelled, place]}[
                request.param
            ]
            assert main(["stats", *map(str, places), "--no-page"]) == 2
            return capsys.readouterr().err

        return ask

    def test_a_wrong_path(self, ask, tmp_path):
        assert_one_sentence(
            ask(tmp_path / "nowhere"), f"{tmp_path}/nowhere is not there", "give the OUT of a `labels` run"
        )

    def test_an_empty_folder(self, ask, tmp_path):
        assert_one_sentence(ask(tmp_path), f"{tmp_path} holds no labels", "give the OUT of a `labels` run")

    def test_a_file(self, ask, tmp_path):
        (tmp_path / "x.yaml").write_text("recipe: {}")
        assert_one_sentence(
            ask(tmp_path / "x.yaml"), f"{tmp_path}/x.yaml is a file", "give the OUT of a `labels` run"
        )

    def test_an_out_that_was_never_audited(self, ask, labelled, tmp_path):
        out = tmp_path / "out"
        shutil.copytree(
            labelled,
            out,
            ignore=shutil.ignore_patterns("segments.parquet", "shards.parquet", "sums.parquet", "*.tar"),
        )
        assert_one_sentence(ask(out), f"{out} holds no segments.parquet", f"overtone status {out}")

    def test_a_damaged_table(self, ask, labelled, tmp_path):
        out = tmp_path / "out"
        shutil.copytree(labelled, out, ignore=shutil.ignore_patterns("*.tar"))
        (out / "shards.parquet").write_bytes((out / "shards.parquet").read_bytes()[:-100])
        assert_one_sentence(ask(out), f"{out}/shards.parquet is damaged", "run the same `labels` again")


def test_an_out_whose_files_were_all_rejected_is_shown(labelled, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(labelled, out, ignore=shutil.ignore_patterns("*.tar"))
    pq.write_table(SEGMENTS.empty_table(), out / "segments.parquet")
    assert main(["stats", str(out), str(labelled)]) == 0
    assert main(["stats", str(out)]) == 0
    assert "0 recordings" in capsys.readouterr().out
    assert as_json(capsys, str(out))["hours"] == 0
