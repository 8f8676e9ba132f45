"""The ladder's table: a row for each step, by size, of what docs/training.md repeats."""

from pathlib import Path

from examples.ladder import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_the_one_in_the_docs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ladder"])
    main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[1] for row in rows] == ["2.5m", "6m", "22m", "95m", "330m"]
    page = (ROOT / "docs" / "training.md").read_text()
    assert [row for row in rows if row not in page] == []


def test_a_slower_gpu_hears_less(monkeypatch, capsys):
    """At 1 TFLOP/s and with a transform that takes no time: 1,000 GFLOP a second of arithmetic."""
    monkeypatch.setattr("sys.argv", ["ladder", "--tflops", "1", "--cqt", "1e12"])
    main()
    for row in capsys.readouterr().out.splitlines()[2:]:
        _, _, _, cost, speed, *_ = (cell.strip().replace(",", "") for cell in row.split("|"))
        assert abs(float(speed) - 1000 / float(cost)) < 0.1 * float(speed)
