"""Cells of a table: their text, the value a page sorts by, and how the terminal draws them."""

import io

import pytest
from rich.console import Console

from pipeline.report import terminal
from pipeline.report.table import Column, Table, bar, number, short, size, span

CELLS = [  # column, value, text, what a page sorts by
    (Column("x"), "codes", "codes", "codes"),
    (Column("x", "path"), "/music/a/b.flac", "a/b.flac", "/music/a/b.flac"),
    (Column("x", "path"), ["/m/a/b.mp3", "c.mp3"], "a/b.mp3, c.mp3", "/m/a/b.mp3, c.mp3"),
    (Column("x", "count"), 12_345, "12,345", 12_345),
    (Column("x", "count"), (60, 1024), "60 / 1,024", 60),
    (Column("x", "count", unit="Hz"), 44_100, "44,100 Hz", 44_100),
    (Column("x", "number"), 2.345, "2.35", 2.345),
    (Column("x", "number", 0), 1234.5, "1,234", 1234.5),
    (Column("x", "number"), 0.0004, "0.0004", 0.0004),
    (Column("x", "share", 1), 0.0389, "3.9%", 0.0389),
    (Column("x", "bytes"), 122_368, "119.5 KiB", 122_368),
    (Column("x", "duration"), 128.0, "2:08 min", 128.0),
    (Column("x", "meter"), 0.25, "█████░░░░░░░░░░░░░░░", 0.25),
    (Column("x", "figures"), 2088, "2088", 2088),
    (Column("x", "number"), None, "–", ""),
    (Column("x", "path"), None, "–", ""),
]


@pytest.mark.parametrize("column, value, text, sort_value", CELLS)
def test_a_cell_has_a_text_and_sorts_by_its_value(column, value, text, sort_value):
    assert (column.text(value), column.sort_value(value)) == (text, sort_value)


def test_numbers_are_to_the_right_and_sorted_as_numbers():
    kinds = {kind: Column("x", kind) for kind in ("text", "path", "histogram", "meter", "figures", "count")}
    assert [kind for kind, column in kinds.items() if column.is_right] == ["figures", "count"]
    assert [kind for kind, column in kinds.items() if column.is_number] == ["meter", "figures", "count"]


def drawn(table: Table, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(terminal.drawn(table))
    return out.getvalue()


def test_the_terminal_shows_every_character_of_a_name():
    name = "[red]take[/] 1 [bold].flac"
    text = drawn(Table("[b]T", {"a": Column("[i]h")}, [{"a": name}], "note [/]"))
    for part in ("[b]T", "[i]h", name, "note [/]"):
        assert part in text
    narrow = drawn(Table("", {0: Column("a"), 1: Column("b", "count")}, [["x" * 60, 7]]), 30)
    assert narrow.count("x") == 60 and "…" not in narrow, "folded, not cut"


@pytest.mark.parametrize("share, colour", [(0.05, "31"), (0.1, "32")])
def test_a_poor_meter_is_red(share, colour):
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="standard")
    console.print(terminal.drawn(Table("", {"m": Column("", "meter")}, [{"m": share}])))
    assert f"\x1b[{colour}m" in out.getvalue()


def test_a_bar_shows_what_is_there_at_all():
    assert bar([1] + [0] * 98 + [1000], 10) == "▁        █"


def test_units_change_with_the_size():
    assert [size(v) for v in (None, 1023, 1024, 3 << 40)] == ["–", "1023 B", "1.0 KiB", "3.00 TiB"]
    assert [span(v) for v in (None, 59.94, 61, 7260)] == ["–", "59.9 s", "1:01 min", "2:01 h"]
    assert [number(v) for v in (None, 0, -0.004, 12_000)] == ["–", "0.00", "-0.004", "12,000.00"]
    assert short("a.mp3") == "a.mp3"
