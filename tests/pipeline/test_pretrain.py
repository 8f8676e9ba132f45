"""Following a run's files while they are written and replaced."""

from pipeline.pretrain import Tail


def test_whole_lines_as_they_come_and_another_file_from_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.lines() == []
    with open(path, "a") as file:
        file.write("one\ntw")
        file.flush()
        assert tail.lines() == ["one"]
        file.write("o\n")
    assert tail.lines() == ["two"] and tail.lines() == []
    other = tmp_path / "cut"
    other.write_text("a line that is longer than what was there before\n")
    other.replace(path)
    assert tail.lines() == []
    with open(path, "a") as file:
        file.write("three\n")
    assert tail.lines() == ["three"]
    assert Tail(path).lines() == []
