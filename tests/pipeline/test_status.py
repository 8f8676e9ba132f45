"""`overtone status RUN`: of a run that this or an older version wrote."""

import json

import pytest

from pipeline.cli import main
from pipeline.status import status
from tests.stages.pretrain.run.test_display import UPDATE, VALID, old


def write(folder, version, *more: dict):
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    (folder / "data.json").write_text('{"hours": 1.5}')
    rows = [{"kind": "start", "update": 0, "updates": 9}, version(UPDATE), version(VALID), *more]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("version", [dict, old])
def test_rows_have_both_names_and_the_text_the_present_ones(tmp_path, version, capsys):
    run = write(tmp_path / "run", version)
    assert main(["status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["update_row"] == UPDATE | old(UPDATE) and found["valid_row"] == VALID | old(VALID)
    assert (found["update"], found["updates"], found["restarts"], found["finished"]) == (7, 9, 0, False)
    text = status(str(run))[1]
    assert (
        "gain_over_unigram 0.25" in text and "lr 0.001" in text and "update 7 of 9, 1.50 h of audio" in text
    )
    assert "newest checkpoint none; the same `train` command goes on from there" in text


def test_a_finished_run(tmp_path):
    restart, end = {"kind": "start", "updates": 9}, {"kind": "end"}
    checkpoint = {"kind": "checkpoint", "path": "u00000009"}
    found, text = status(str(write(tmp_path / "run", dict, restart, checkpoint, end)))
    assert (
        found["finished"]
        and found["restarts"] == 1
        and text.endswith("finished; newest checkpoint u00000009")
    )


def test_a_run_without_updates_and_a_damaged_line(tmp_path):
    run = write(tmp_path / "run", dict)
    (run / "metrics.jsonl").unlink()
    found, text = status(str(run))
    assert found["update_row"] is None and found["update"] == 0 and "no update yet" in text
    (run / "metrics.jsonl").write_text('{"kind": "start"}\n{"kind"\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: .* cuts damaged lines off"):
        status(str(run))
