"""The steps of a scan: what is refused before anything is listed, what is told on the way, files lost
midway."""

import pytest

from stages.label.scan import scan as module
from stages.label.scan.scan import check_roots, scan


class TestRoots:
    def test_one_file_to_scan_is_enough(self, tmp_path):
        (tmp_path / "cover.jpg").touch()
        (tmp_path / "b.wav").touch()
        check_roots([str(tmp_path)])
        check_roots([str(tmp_path)], ["a*"])

    def test_without_any_it_says_what_was_seen(self, tmp_path):
        (tmp_path / "cover.jpg").touch()
        with pytest.raises(
            ValueError, match=r"no audio files found under .* \(1 other files seen\): give a folder"
        ):
            check_roots([str(tmp_path)])

    def test_excluded_files_are_counted_apart(self, tmp_path):
        for name in ("a.wav", "b.wav", "c.txt"):
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"\(1 other files and 2 that run.exclude leaves out seen\)"):
            check_roots([str(tmp_path)], ["*.wav"])
        check_roots([str(tmp_path)], ["a.wav"])

    def test_the_file_may_lie_in_any_root(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        (tmp_path / "two" / "b.wav").touch()
        check_roots([str(tmp_path / "one"), str(tmp_path / "two")])


def test_a_previous_catalog_is_read_before_anything_is_listed(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_list", lambda *_: pytest.fail("listed"))
    for damaged in (tmp_path / "c.parquet", str(tmp_path / "c.parquet")):
        (tmp_path / "c.parquet").write_bytes(b"x")
        with pytest.raises(ValueError, match="move it away|has format none"):
            scan([str(scans.music)], damaged, tmp_path / "new.parquet")


def test_one_worker_and_a_previous_catalog_by_its_name(scans):
    scans.write("a.wav")
    for unchanged in (0, 1):
        summary = scan([str(scans.music)], str(scans.catalog), scans.catalog, workers=1)
        assert (summary.kept, summary.unchanged) == (1, unchanged)


def test_every_step_tells_how_far_it_is(scans, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS_S", 0.0)
    for name in ("a", "b", "copy of b"):
        scans.write(f"{name}.wav", seed=len(name.split()[-1]) + (name == "a"))
    (scans.music / "garbage.wav").write_bytes(b"garbage\n" * 100)
    seen = []
    scans(progress=seen.append)
    steps = {step: [event for event in seen if event["step"] == step] for step in ("list", "probe", "hash")}
    assert [event["done"] for event in steps["list"]] == [1, 2, 3, 4, 4]
    assert [event["done"] for event in steps["probe"]] == [1, 2, 3, 4]
    assert steps["probe"][-1] == {"stage": "scan", "step": "probe", "done": 4, "total": 4, "rejected": 1} | {
        "last": True
    }
    assert [event["done"] for event in steps["hash"]] == list(range(1, len(steps["hash"]) + 1)) and steps[
        "hash"
    ]


def test_progress_is_told_now_and_then_and_at_the_end(monkeypatch):
    now, seen = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    tell = module._Report(seen.append)
    for now[0], last in (
        (1.0, False),
        (1.2, False),
        (1.5, False),
        (1.6, False),
        (1.7, True),
        (1.9, False),
        (2.3, False),
    ):
        tell("list", done=now[0], **({"last": True} if last else {}))
    assert [event["done"] for event in seen] == [1.0, 1.5, 1.7, 2.3]


def test_a_file_that_is_lost_before_its_bytes_are_hashed_is_rejected(scans, monkeypatch):
    scans.write("a.wav")
    scans.write("b.wav")  # the same bytes: both are hashed

    def lost(path):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(module, "full_sha256", lost)
    summary = scans()
    assert (summary.kept, summary.rejected) == (0, 2)
    assert {row["reason"] for row in scans.rows} == {"unreadable: No such file or directory"}


@pytest.mark.parametrize("options", [{}, {"probe": "overtone_dying_probe:probe"}])
def test_a_rejected_file_has_no_rate_no_channels_and_no_length(scans, options):
    (scans.music / "garbage.wav").write_bytes(b"garbage\n" * 100)
    code = "def probe(path):\n    return {'reason': 'all that a probe that died leaves'}\n"
    (scans.music.parent / "overtone_dying_probe.py").write_text(code)
    scans(**options)
    row = scans.row("garbage.wav")
    assert (row["status"], row["rate_hz"], row["channels"], row["duration_s"]) == ("rejected", 0, 0, 0.0)
