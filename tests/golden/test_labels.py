"""The quickstart's labels are those of the commit the golden facts were made at."""

import pytest

from tests.bare import LABELS, listed, only
from tests.conftest import records
from tests.golden import labels, read


@pytest.fixture(scope="module")
def out(tmp_path_factory, run_overtone):
    folder = tmp_path_factory.mktemp("golden") / "out"
    done = run_overtone(*labels.arguments(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_columns_shards_and_counts_are_the_same(out):
    assert labels.shards(out) == read("labels")["shards"]


def test_statistics_are_the_same_within_rounding(out):
    golden, found = read("labels")["means"], labels.means(out)
    assert {name: found[name] for name in golden} == pytest.approx(golden, rel=labels.TOLERANCE)
    assert found.keys() - golden.keys() == {"other_tracks"}, "came later"


def test_samples_codes_and_magnitudes_are_the_same_within_rounding(out):
    golden = read("labels")["values"]
    found = labels.values(out)
    assert found.keys() == golden.keys() and min(map(len, found.values())) >= 20
    assert not labels.differ(found, golden)


def test_every_tar_has_the_same_bytes(out):
    known = read("labels")["sha256"]
    if labels.cpu() not in known:
        pytest.skip(
            f"no digests of {labels.cpu()} yet, only of {sorted(known)}: python -m tests.golden adds them"
        )
    assert labels.digests(out) == known[labels.cpu()]


def test_without_ray_on_a_bare_machine_the_bytes_and_the_records_are_the_same(out, tmp_path, run_overtone):
    """`--plain` where nothing is installed but what docs/cluster.md lists."""
    bare = only(tmp_path / "site", listed(LABELS))
    done = run_overtone(*labels.arguments(tmp_path / "out"), "--plain", **bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert labels.digests(tmp_path / "out") == labels.digests(out) and labels.digests(out)
    assert records(tmp_path / "out") == records(out)
    again = run_overtone(*labels.arguments(tmp_path / "out"), **bare)
    assert again.returncode == 2 and again.stdout == ""
    assert "ray is not installed: pip install ray, or add --plain" in again.stderr
