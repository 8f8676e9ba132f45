"""The numbers of `overtone stats`: against the tars themselves, of older versions, and the anomalies."""

import io
import json
import shutil
import tarfile

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.report import corpus as corpora
from pipeline.report import label_tables
from pipeline.report import numbers as counted
from pipeline.report.anomalies import anomalies, everything
from pipeline.report.timeline import throughput, without_pauses
from tests.pipeline.report import synthetic


def members(out, kind: str, extension: str) -> list[np.ndarray]:
    found = []
    for path in sorted(out.glob(f"columns/{kind}*/*.tar")):
        with tarfile.open(path) as tar:
            found += [
                np.load(io.BytesIO(tar.extractfile(m).read())) for m in tar if m.name.endswith(extension)
            ]
    return found


def numbers(out) -> dict:
    with corpora.opened(str(out)) as corpus:
        return counted.numbers(corpus)


def odd(out) -> dict:
    with corpora.opened(str(out)) as corpus:
        return {o.what: o for o in anomalies(corpus, counted.numbers(corpus))}


@pytest.fixture(scope="module")
def found(labelled) -> dict:
    return numbers(labelled)


class TestOfALabelledFolder:
    """A real run of `labels`; everything is computed again from its tars."""

    def test_totals(self, labelled, found):
        samples = pq.read_table(labelled / "segments.parquet")["samples"].to_numpy().sum()
        assert found["recordings"] == 10 and found["hours"] == pytest.approx(samples / 24_000 / 3600)
        assert found["bytes"] == sum(p.stat().st_size for p in labelled.glob("columns/*/*.tar"))
        assert [c["stage"] for c in found["columns"]] == ["decode", "codes", "cqt"]
        assert all(
            c["retries"] == 0 and c["times_real_time"] > 0 and c["frames_per_s"] == pytest.approx(75, abs=0.1)
            for c in found["columns"]
        )
        assert found["agreement"]["differ"] == 0 and found["not_gathered"] == []

    def test_slowest_files_are_those_of_the_records(self, labelled, found):
        noted = [json.loads(p.read_text())["run"] for p in labelled.glob("columns/audio/*.json")]
        expected = {r["recording"]: r["seconds"] for run in noted for r in run["slowest"]}
        assert all(
            run["slowest"] and sum(r["seconds"] for r in run["slowest"]) < run["wall_s"] for run in noted
        )
        assert {r["recording"]: r["seconds"] for r in found["slowest_files"]} == expected and found[
            "timed_shards"
        ] == len(noted)
        paths = dict(duckdb.sql(f"SELECT recording, path FROM '{labelled}/plan.parquet'").fetchall())
        assert all(
            r["path"] == paths[r["recording"]] and r["times_real_time"] > 0 and r["shard"]
            for r in found["slowest_files"]
        )
        lost = [r["lost_s"] for r in found["slowest_files"]]
        assert lost == sorted(lost, reverse=True)

    def test_code_use_is_that_of_the_codes_in_the_tars(self, labelled, found):
        codes_TK = np.concatenate(members(labelled, "codes", "npy"))
        assert len(found["codes"]) == 3
        for level, codes_T in zip(found["codes"], codes_TK.T, strict=True):
            share = np.bincount(codes_T, minlength=64) / len(codes_T)
            bits = -(share[share > 0] * np.log2(share[share > 0])).sum()
            assert level["perplexity"] == pytest.approx(2**bits) and level["dead"] == (share == 0).sum()
            assert (level["top_code"], level["top_share"]) == (share.argmax(), pytest.approx(share.max()))

    def test_cqt_by_pitch_is_that_of_the_frames_in_the_tars(self, labelled):
        from stages.shards import histograms

        frames_TF = np.concatenate(members(labelled, "cqt", "npy")).astype(np.float64)
        with corpora.opened(str(labelled)) as corpus:
            own, shards = histograms.read(corpus.out, corpus.registry.current["cqt"])
        assert shards == len(list(labelled.glob("columns/cqt*/*.tar")))
        assert own["cqt"] == pytest.approx(
            np.stack([frames_TF.sum(0), np.square(frames_TF).sum(0)]), rel=1e-3
        )

    def test_distributions_are_of_the_segments_rows(self, labelled, found):
        table = pq.read_table(labelled / "segments.parquet")
        for name in ("lufs", "rms_db", "bandwidth_hz", "clipping", "stereo"):
            values, d = table[name].drop_null().to_numpy(), found["distributions"][name]
            assert (d["count"], sum(d["counts"])) == (len(values), len(values)) and d[
                "mean"
            ] == pytest.approx(values.mean())
            assert d["p50"] == pytest.approx(np.quantile(values, 0.5, method="inverted_cdf"), abs=d["width"])

    def test_one_recording_one_shard_and_a_condition(self, labelled, capsys):
        shard = pq.read_table(labelled / "shards.parquet")["shard"][0].as_py()
        assert main(["stats", str(labelled), "--shard", shard, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert {row["shard"] for row in shown["rows"]} == {shard} and len(shown["columns"]) == 3
        assert (
            main(
                ["stats", str(labelled), "--recording", shown["rows"][0]["path"].rsplit("/", 1)[-1], "--json"]
            )
            == 0
        )
        assert json.loads(capsys.readouterr().out)["recordings"] == 1
        assert main(["stats", str(labelled), "--where", "rms_db < -1000"]) == 0
        assert "0 segments" in capsys.readouterr().out
        assert main(["stats", str(labelled), "--where", "loudness < 1"]) == 2
        assert '"loudness" not found' in capsys.readouterr().err
        assert main(["stats", str(labelled), "--recording", "none.mp3"]) == 2

    def test_the_terminal_says_it(self, labelled, capsys):
        assert main(["stats", str(labelled), "--no-page"]) == 0
        shown = capsys.readouterr().out
        for words in (
            "10 recordings",
            "perplexity",
            "LUFS",
            "all shards agree",
            "vorbis",
            "slowest shards",
            "slowest files",
            "longest files",
            "Worth a look",
        ):
            assert words.lower() in shown.lower()

    def test_an_older_out_is_shown_with_what_it_has(self, labelled, tmp_path, capsys):
        old = tmp_path / "old"
        shutil.copytree(labelled, old)
        (old / "sums.parquet").unlink()
        new = [
            "columns",
            "lufs",
            "bandwidth_hz",
            "stereo",
            "tuning_cents",
            "tuning_strength",
            "cqt_octaves",
            "fingerprint",
        ]
        pq.write_table(pq.read_table(old / "segments.parquet").drop_columns(new), old / "segments.parquet")
        fields = ["hours", "times_real_time", "attempts", "rejects", "slowest"]
        pq.write_table(pq.read_table(old / "shards.parquet").drop_columns(fields), old / "shards.parquet")
        assert main(["stats", str(old)]) == 0
        shown = capsys.readouterr().out
        assert "not gathered" in shown and "lufs, bandwidth_hz, stereo" in shown and "slowest_files" in shown
        assert "Slowest files" not in shown
        assert main(["stats", str(labelled), str(old)]) == 0
        assert "not gathered" in capsys.readouterr().out
        assert "not gathered" in (old / "report/index.html").read_text()


def test_a_slow_file_is_found_among_all_shards_and_a_long_one_is_not(tmp_path):
    slow = "(SELECT arg_min(recording, recording) FROM plan WHERE shard = 's000000000007')"
    changes = [
        "ALTER TABLE shards ADD COLUMN slowest STRUCT(recording VARCHAR, seconds DOUBLE, "
        "times_real_time DOUBLE)[]",
        "UPDATE shards SET slowest = [{recording: 'long', seconds: 600, times_real_time: 40}] "
        "WHERE shard <> 's000000000003' AND \"column\" = 'audio'",
        f"UPDATE shards SET slowest = [{{recording: {slow}, seconds: 50, times_real_time: 2}}] "
        "WHERE shard = 's000000000007' AND \"column\" = 'audio'",
    ]
    out = synthetic.out(tmp_path, 12, changes=changes)
    found = numbers(out)
    first, *_ = found["slowest_files"]
    assert (first["shard"], first["seconds"], first["times_real_time"]) == ("s000000000007", 50, 2) and first[
        "path"
    ].startswith("/music/")
    assert found["slowest_files"][1]["recording"] == "long" and found["slowest_files"][1]["lost_s"] < 0
    assert "gathered for 11 of 12 shards" in label_tables.tables(found)["Slowest files"].note


class TestWorthALook:
    def test_ordinary_music_is_not_odd(self, tmp_path):
        assert odd(synthetic.out(tmp_path, 10)) == {}

    CHANGES = {
        "narrow or upsampled": "UPDATE segments SET bandwidth_hz = 5500 WHERE recording = (SELECT "
            "min(recording) FROM segments)",
        "mostly silent": "UPDATE segments SET silence = 0.9 WHERE recording = (SELECT min(recording) "
            "FROM segments)",
        "clipped": "UPDATE segments SET clipping = 0.05 WHERE recording = (SELECT min(recording) FROM "
            "segments)",
        "very quiet": "UPDATE segments SET lufs = -60 WHERE recording = (SELECT min(recording) FROM "
            "segments)",
        "channels cancel": "UPDATE segments SET stereo = -0.9 WHERE recording = (SELECT "
            "min(recording) FROM segments)",
        "offset": "UPDATE segments SET dc = -0.1 WHERE recording = (SELECT min(recording) FROM segments)",
        "few codes": "UPDATE segments SET code_entropy_bits = [0, 1.5] WHERE recording = (SELECT "
            "min(recording) FROM segments)",
        "damaged packets": "UPDATE segments SET damaged_packets = 2 WHERE recording = (SELECT "
            "min(recording) FROM segments)",
        "shorter than its header says": "UPDATE segments SET decoded_s = 200 WHERE recording = (SELECT "
            "min(recording) FROM segments)",
        "near-duplicates": "UPDATE segments SET fingerprint = (SELECT fingerprint FROM segments s "
            "WHERE s.\"index\" = segments.\"index\" AND "
                           "s.recording = (SELECT max(recording) FROM segments)) WHERE recording = "
                               "(SELECT min(recording) FROM segments)",
    }  # fmt: skip

    @pytest.mark.parametrize("what", CHANGES)
    def test_one_odd_recording_is_found_and_its_command_leaves_out_it_alone(self, tmp_path, what):
        out = synthetic.out(tmp_path, 6, changes=[self.CHANGES[what]])
        found = odd(out)[what]
        assert (found.recordings, found.segments) == (1, 8) and found.hours == pytest.approx(8 * 30 / 3600)
        where = found.exclude.removeprefix('--set "data.where=').removesuffix('"')
        rows = duckdb.sql(f"SELECT recording, {where} AS kept FROM '{out}/segments.parquet'").fetchall()
        left_out = {recording for recording, kept in rows if not kept}
        smallest, greatest = min(r for r, _ in rows), max(r for r, _ in rows)
        assert left_out in ({smallest}, {greatest}) if what == "near-duplicates" else left_out == {smallest}
        assert all(kept is not None for _, kept in rows), (
            "a condition that is unknown would leave everything out"
        )

    @pytest.mark.parametrize("header_s, decoded_s, odd_one", [
        (240, 229.9, True), (240, 230.1, False), (100, 94.9, True), (100, 95.1, False), (100, 200, False),
    ])  # fmt: skip
    def test_a_header_may_promise_a_little_more(self, tmp_path, header_s, decoded_s, odd_one):
        change = (
            f"UPDATE segments SET header_s = {header_s}, decoded_s = {decoded_s} WHERE recording = (SELECT "
        )
        found = odd(synthetic.out(tmp_path, 6, changes=[change + "min(recording) FROM segments)"]))
        assert ("shorter than its header says" in found) == odd_one
        if odd_one:
            (example,) = found["shorter than its header says"].examples
            assert example.endswith(f"({header_s:.1f} s, decoded {decoded_s:.1f} s)")

    def test_where_a_statistic_was_not_gathered_nothing_is_left_out(self, tmp_path):
        out = synthetic.out(
            tmp_path,
            6,
            changes=[self.CHANGES["clipped"], "UPDATE segments SET clipping = NULL WHERE clipping < 0.05"],
        )
        where = odd(out)["clipped"].exclude.removeprefix('--set "data.where=').removesuffix('"')
        assert (
            duckdb.sql(f"SELECT count(*) FROM '{out}/segments.parquet' WHERE {where}").fetchall()[0][0]
            == 6 * 24 - 8
        )

    def test_many_duplicates_go_to_a_file(self, tmp_path):
        out = synthetic.out(
            tmp_path,
            40,
            changes=['UPDATE segments SET fingerprint = printf(\'%048x\', "index" + 7) WHERE "index" < 4'],
        )
        found = odd(out)["near-duplicates"]
        assert found.recordings == 40 * 3 - 1
        where = found.exclude.removeprefix('--set "data.where=').removesuffix('"')
        assert (
            duckdb.sql(
                f"SELECT count(DISTINCT recording) FROM '{out}/segments.parquet' WHERE {where}"
            ).fetchall()[0][0]
            == 1
        )

    def test_far_shards_poor_codebooks_differing_columns_stragglers(self, tmp_path):
        changes = [
            "UPDATE segments SET rms_db = rms_db - 30 WHERE shard = (SELECT min(shard) FROM segments)",
            "UPDATE shards SET frames = frames - 1 WHERE shard = (SELECT max(shard) FROM shards) AND "
            "\"column\" LIKE 'cqt%'",
            "UPDATE shards SET wall_s = 900 WHERE shard = (SELECT max(shard) FROM shards) AND "
            "\"column\" LIKE 'codes%'",
        ]
        out = synthetic.out(tmp_path, 12, changes=changes)
        table = pq.read_table(out / "sums.parquet").to_pylist()
        table[0]["values"] = [1e6] + [1.0] * 63
        pq.write_table(table_of(table), out / "sums.parquet")
        found = odd(out)
        assert found["far shards"].segments == 24 and "s000000000000" in found["far shards"].where
        assert "perplexity 1 of 64" in found["poor codebook 0"].why and "poor codebook 1" not in found
        assert (
            found["columns disagree"].examples == ("s00000000000b",)
            and "verify" in found["columns disagree"].exclude
        )
        assert "codes s00000000000b" in found["stragglers"].examples[0]
        assert (
            everything(list(found.values()))
            == f'--set "data.where=(({found["far shards"].where})) IS NOT TRUE"'
        )


def table_of(rows):
    import pyarrow as pa

    from stages.shards import histograms

    return pa.Table.from_pylist(rows, histograms.TABLE)


def test_the_trainers_own_filter_takes_the_command(tmp_path):
    """The text after --set is one value of a strict configuration, and comes back as it was."""
    from stages import config

    out = synthetic.out(
        tmp_path,
        6,
        changes=[TestWorthALook.CHANGES["near-duplicates"], TestWorthALook.CHANGES["narrow or upsampled"]],
    )
    for found in odd(out).values():
        override = found.exclude.removeprefix('--set "').removesuffix('"')
        (tmp_path / "x.yaml").write_text("data: {}")
        assert config.load(tmp_path / "x.yaml", [override])["data"]["where"] == override.removeprefix(
            "data.where="
        )


class TestTimeline:
    def test_all_audio_is_in_it_and_a_busy_stretch_is_as_fast_as_its_jobs(self):
        rng = np.random.default_rng(0)
        begin, took, rate = rng.uniform(0, 90, 200), rng.uniform(1, 10, 200), rng.uniform(10, 50, 200)
        edges = np.linspace(0, 100, 33)
        assert (throughput(begin, begin + took, rate, edges) * np.diff(edges)).sum() == pytest.approx(
            (rate * took).sum()
        )
        two = throughput(
            np.array([0.0, 5.0]),
            np.array([10.0, 10.0]),
            np.array([4.0, 3.0]),
            np.array([0.0, 5.0, 10.0, 20.0]),
        )
        assert two == pytest.approx([4, 7, 0])

    def test_a_pause_is_cut_out(self):
        begin, cuts = without_pauses(np.array([0.0, 5.0, 1000.0, 1001.0]), np.array([10.0, 10.0, 10.0, 4.0]))
        assert begin.tolist() == [0, 5, 15, 16] and cuts == [{"at_s": 15.0, "pause_s": 985.0}]


def test_what_is_no_out_is_said(tmp_path, capsys):
    assert main(["stats", str(tmp_path)]) == 2
    assert "holds no labels" in capsys.readouterr().err
