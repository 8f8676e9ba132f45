"""Training runs: what is read from metrics.jsonl, and the page of one and of several."""

import json

import pytest

from pipeline.cli import main
from pipeline.report import training, training_charts


def write(folder, updates: int, restarts=(), **missing):
    """A run's metrics, its last line cut short; after a restart ten updates are done again, with a loss 100
    lower."""
    folder.mkdir(parents=True)
    lines = [
        {
            "kind": "start",
            "time": 0.0,
            "update": 0,
            "world": 1,
            "host": "a",
            "codebooks": ["codes-x/0", "codes-x/1"],
            "updates": updates,
        }
    ]
    done, time, shift = 0, 0.0, 0
    for stop in (*restarts, updates):
        while done < stop:
            done, time = done + 1, time + 1
            lines.append(
                {
                    "kind": "update",
                    "update": done,
                    "epoch": 0,
                    "time": time,
                    "loss": 1000.0 - done - shift,
                    "ce": [5.0, 6.0],
                    "accuracy": [done / updates, None],
                    "gain_over_unigram": [1.0, 0.5],
                    "cqt_error": 0.5,
                    "cqt_mean_error": 1.0,
                    "cqt_line_error": 0.8,
                    "penalty": 0.1,
                    "grad_norm": 2.0 + 50 * (done == 7),
                    "lr": 1e-3,
                    "scale": 1.0,
                    "audio_s_per_s": 40.0,
                    "utilisation": 0.4,
                    "data_wait": 0.05,
                    "masked_frames": 10,
                    "skipped": int(done == 5),
                }
            )
            for name in missing.get("without", ()):
                del lines[-1][name]
            if done % 20 == 0:
                lines.append(
                    {
                        "kind": "valid",
                        "update": done,
                        "time": time,
                        "loss": 990.0 - done,
                        "accuracy": [0.2, 0.1],
                        "gain_over_unigram": [1, 1],
                        "effective_rank": [9.0, 8.0],
                    }
                )
        if stop != updates:
            done, shift = stop - 10, shift + 100
            lines.append({"kind": "start", "time": time + 0.5, "update": done, "world": 1, "host": "b"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "update", "upd')
    return folder


def test_a_run_is_read_with_its_restarts_and_the_last_of_what_was_done_twice(tmp_path):
    run = training.read(str(write(tmp_path / "run", 100, restarts=(50, 80))))
    assert run.restarts == [40, 70] and run.levels == 2 and not run.ended
    assert run.curve["update"] == list(range(1, 101))
    assert run.curve["loss"][39] == 960 and run.curve["loss"][45] == 1000 - 46 - 100, (
        "done again after the restart"
    )
    assert run.curve["accuracy/0"][-1] == 1 and set(run.curve["accuracy/1"]) == {None}
    shown = training.summary(run)
    assert (shown["updates"], shown["loss"], shown["audio_s_per_s"], shown["skipped"]) == (100, 700, 40, 1)
    assert shown["held_out"]["update"] == 100


def test_many_updates_become_means_and_spikes_stay_to_be_seen(tmp_path):
    run = training.read(str(write(tmp_path / "run", 5000)))
    assert 300 < len(run.curve["update"]) <= training.POINTS + 1 and run.curve["update"][-1] == 5000
    assert sum(run.curve["skipped_sum"]) == 1 and max(run.curve["grad_norm_max"]) == 52 > max(
        run.curve["grad_norm"]
    )


def test_every_plot_is_one_that_plotly_knows(tmp_path):
    import plotly.graph_objects as go

    runs = [training.read(str(write(tmp_path / name, 60, restarts=(30,)))) for name in "ab"]
    for own in (runs[:1], runs):
        plots = [plot for section in training_charts.charts(own).values() for plot in section]
        titles = {plot["title"] for plot in plots}
        assert {
            "Loss",
            "Gradient norm",
            "Throughput",
            "Utilisation",
            "Data wait",
            "CQT error against predictors that read no audio",
        } <= titles
        for plot in plots:
            # raises on what it does not know
            figure = go.Figure({"data": plot["data"], "layout": plot["layout"]})
            assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
            assert plot["title"].startswith("Effective") or len(figure.layout.shapes) == len(own), (
                "a mark at each restart"
            )
    assert any(plot["title"] == "Accuracy, level 1" for plot in plots) and not any(
        "by level" in plot["title"] for plot in plots
    )


def test_missing_keys_leave_curves_out(tmp_path, capsys):
    run = write(
        tmp_path / "run",
        30,
        without=(
            "cqt_error",
            "cqt_mean_error",
            "cqt_line_error",
            "grad_norm",
            "gain_over_unigram",
            "skipped",
        ),
    )
    assert main(["stats", str(run)]) == 0
    html = (run / "report/index.html").read_text()
    assert "Throughput" in html and "Gradient norm" not in html
    assert "loss" in capsys.readouterr().out


def test_runs_and_outs_do_not_mix_and_an_empty_run_is_said(tmp_path, capsys):
    run = write(tmp_path / "run", 10)
    (tmp_path / "out").mkdir()
    assert main(["stats", str(run), str(tmp_path / "out")]) == 2
    assert "is a training run" in capsys.readouterr().err
    assert main(["stats", str(run), "--where", "true"]) == 2
    (run / "metrics.jsonl").write_text('{"kind": "start", "update": 0}\n')
    capsys.readouterr()
    assert main(["stats", str(run)]) == 2 and "no update yet" in capsys.readouterr().err


def test_as_json(tmp_path, capsys):
    assert main(["stats", str(write(tmp_path / "run", 40, restarts=(20,))), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["restarts"] == [10]
    assert not (tmp_path / "run/report").exists()


@pytest.mark.parametrize("at", [0, 1])
def test_the_page_is_the_first_runs(tmp_path, at):
    runs = [str(write(tmp_path / name, 30)) for name in "ab"]
    assert main(["stats", runs[at], runs[1 - at]]) == 0
    assert (tmp_path / "ab"[at] / "report/index.html").exists() and not (
        tmp_path / "ab"[1 - at] / "report"
    ).exists()


OLD = {"gain_over_unigram": "gain", "lr": "rate"}


def with_old_keys(run, until: int):
    """Rename the figures of the updates up to `until`, as a version before these names wrote them."""
    path, lines = run / "metrics.jsonl", []
    for line in path.read_text().splitlines()[:-1]:
        row = json.loads(line)
        old = row["update"] <= until
        lines.append(json.dumps({OLD.get(k, k) if old else k: v for k, v in row.items()}))
    path.write_text("\n".join(lines) + "\n")
    return run


@pytest.mark.parametrize("until", [0, 50, 100])
def test_a_run_with_old_new_or_both_names_is_one_curve(tmp_path, until, capsys):
    run = with_old_keys(write(tmp_path / "run", 100), until)
    assert ('"gain": ' in (run / "metrics.jsonl").read_text()) == (until > 0)
    found = training.read(str(run))
    assert found.curve["gain_over_unigram/1"] == [0.5] * 100 and found.curve["lr"] == [1e-3] * 100
    assert [row["gain_over_unigram"] for row in found.valid] == [[1, 1]] * 5
    charts = training_charts.charts([found])
    (gain,), rate = charts["Codes: gain_over_unigram"], charts["Optimisation"][1]
    assert [len(curve["x"]) for curve in gain["data"]] == [100, 5, 100, 5]
    assert len(rate["data"][0]["x"]) == 100
    assert gain["layout"]["yaxis"]["title"]["text"] == "gain_over_unigram, nats"
    assert main(["stats", str(run), "--no-page"]) == 0
    assert "gain_over_unigram" in capsys.readouterr().out
    assert main(["stats", str(run), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    for figures, gain in ((shown, [1.0, 0.5]), (shown["held_out"], [1, 1])):
        assert figures["gain_over_unigram"] == figures["gain"] == gain, "also under the old name"
