"""Where people keep music and what they are told: odd bytes in names, a long TMPDIR, headers that lie."""

import json
import os

import pyarrow.parquet as pq
import pytest

from pipeline.labelling.explain import explained
from stages.label import recipe
from tests.conftest import ROOT
from tests.wild import pieces
from tests.wild.pieces import Music, id3v2, libav, sound

CONFIG = """
recipe: {plan: {shard_minutes: 0.2, validation_share: 0.5}, cqt: null}
run: {audio: [unset], out: unset, scan_workers: 1, max_rejected_share: 0.5}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> bytes:
    """A folder whose path is not UTF-8: music, a lie, a hole, what other programs put there."""
    folder = os.path.join(os.fsencode(tmp_path_factory.mktemp("places")), b"m\xfcsic")
    os.mkdir(folder)
    music = Music()
    lie = bytearray(libav(music(3), "mp3", "libmp3lame", muxer={"id3v2_version": "0"}))
    at = max(lie.find(b"Xing"), lie.find(b"Info"))
    lie[at + 8 : at + 12] = b"\xff" * 4
    all_pages = pieces.pages(sound(music(6), "OGG", "VORBIS"))
    files = {
        b"\xe9t\xe9 \x1b[31m.wav": sound(music(4), "WAV", "PCM_16"), b"lie.mp3": bytes(lie),
        b"hole.ogg": b"".join(all_pages[:5] + all_pages[6:]),
        b"tagged.wav": id3v2(b"x") + sound(music(2), "WAV", "PCM_16"),
        b"._a.mp3": b"\0\5\x16\7", b"cover.jpg": b"x", b"notes.txt": b"x", b"readme": b"x",
    }  # fmt: skip
    for name, data in files.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    with open(os.path.join(os.path.dirname(folder), b"l\xefst.txt"), "wb") as file:
        file.write(b"m\xfcsic/tagged.wav\r\n")
    return folder


@pytest.fixture(scope="module")
def overtone(library, run_overtone, tmp_path_factory):
    """The command in a C locale, with a TMPDIR too long for Ray's sockets."""
    above = os.path.dirname(library)
    config = os.path.join(above, b"c.yaml")
    with open(config, "w") as file:
        file.write(CONFIG)
    long = os.path.join(os.fsdecode(above), "job_of_a_slurm_allocation_with_a_long_name", "12345678")
    os.makedirs(long)

    def run(command: str, *arguments, out: bytes = b"\xf6ut", audio: bytes = b"m\xfcsic"):
        place = os.fsdecode(os.path.join(above, out))
        roots = ("--audio", os.fsdecode(os.path.join(above, audio)), "--out", place)
        words = (os.fsdecode(config), *roots) if command == "labels" else (place,)
        done = run_overtone(command, *words, *arguments, LC_ALL="C", TMPDIR=long, PYTHONPATH=str(ROOT))
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def planned(overtone):
    return overtone("labels", "--dry-run")


@pytest.fixture(scope="module")
def labelled(overtone, planned):
    done = overtone("labels")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_name_is_labelled_and_shown(labelled):
    assert "4 found = 3 kept + 1 rejected + 0 duplicates" in labelled
    assert r"\xf6ut" in labelled and "\x1b[31m" not in labelled
    assert "of its sound are damaged or missing" in labelled and "hole.ogg" in labelled


def test_a_list_whose_name_is_not_utf8(overtone):
    done = overtone("labels", "--dry-run", out=b"\xf6ut2", audio=b"l\xefst.txt")
    assert done.returncode == 0 and "1 = 1 readable" in done.stdout, done.stdout + done.stderr


def test_every_run_says_what_it_left_out(planned, labelled):
    for text in (planned.stdout, labelled):
        for ending in ("1 .jpg", "1 .txt", "1 no ending"):
            assert ending in text.partition("no audio by their ending: ")[2].partition("\n")[0]
        assert "left out, put there by other programs (run.include_hidden): 1 ._*" in text


def test_a_header_that_lies_weighs_nothing(planned):
    (line,) = (line for line in planned.stdout.splitlines() if "  recordings" in line)
    assert float(line.split(",")[1].split()[0]) < 0.02, line
    assert "by their headers, 1 of them estimated from their size" in line


def test_after_decoding_every_command_shows_what_was_decoded(labelled, overtone):
    found = json.loads(overtone("status", "--json").stdout)
    hours = (4 + 3 + 2) / 3600
    assert found["hours"] == found["hours_by_header"] == pytest.approx(hours, abs=1e-4)
    assert found["hours_not_decoded"] == 0 and found["recordings"] == 4
    assert {column["hours"] for column in found["columns"].values()} == {found["hours"]}
    assert "by their headers" not in overtone("status").stdout
    assert f"recordings  4, {hours:.2f} h, decoded" in overtone("labels", "--dry-run").stdout


def test_validation_recordings_are_those_that_were_labelled(labelled, overtone):
    (line,) = (line for line in labelled.splitlines() if "of the kept are for validation" in line)
    said = int(line.rpartition("; ")[2].split()[0])
    folder = json.loads(overtone("status", "--json").stdout)["out"]
    with open(os.fsencode(folder) + b"/plan.parquet", "rb") as file:
        plan = pq.read_table(file).to_pylist()
    valid = [row["path_bytes"] for row in plan if row["split"] == "valid"]
    assert said == len([path for path in valid if not path.endswith(b"hole.ogg")])


class TestExplained:
    @pytest.mark.parametrize(
        "name, said",
        [
            (
                b"lie.mp3",
                ["listing   a candidate", "estimated from its size", "its header promises", "kept: 3.0"],
            ),
            (
                b"hole.ogg",
                ["by its header", "decode    rejected: ", "damaged or missing", "costs only itself"],
            ),
            (b"._a.mp3", ["left out: another program put it there", "scan      rejected: no audio"]),
            (b"cover.jpg", ["left out: no audio by its ending (.jpg)"]),
        ],
    )
    def test_one_file_is_tried_and_what_would_happen_is_said(self, labelled, library, name, said):
        text = explained(self.config(library), os.fsdecode(os.path.join(library, name)))
        for words in said:
            assert words in text, text

    def test_why_a_file_would_not_be_found(self, library, tmp_path):
        path = os.fsdecode(os.path.join(library, b"cover.jpg"))
        assert "left out by run.exclude, '*ie.mp3'" in explained(
            self.config(library, 'run.exclude=["*ie.mp3"]'), os.fsdecode(os.path.join(library, b"lie.mp3"))
        )
        elsewhere = explained(self.config(library, f"run.audio={json.dumps([str(tmp_path)])}"), path)
        assert "listing   below none of the folders" in elsewhere

    @staticmethod
    def config(library: bytes, *overrides: str):
        above = os.path.dirname(library)
        out = os.fsdecode(os.path.join(above, b"\xf6ut"))
        audio, places = json.dumps([os.fsdecode(library)]), f"run.out={json.dumps(out)}"
        return recipe.load(
            os.fsdecode(os.path.join(above, b"c.yaml")), [f"run.audio={audio}", places, *overrides]
        )

    def test_the_command_prints_it(self, overtone, labelled, library):
        done = overtone("labels", "--explain", os.fsdecode(os.path.join(library, b"tagged.wav")))
        assert done.returncode == 0 and "kept: 2.00 s in 1 segments" in done.stdout

    def test_a_path_that_is_not_there(self, overtone):
        done = overtone("labels", "--explain", "/nowhere/x.wav")
        assert (done.returncode, done.stderr) == (2, "overtone: --explain '/nowhere/x.wav': no such file\n")
