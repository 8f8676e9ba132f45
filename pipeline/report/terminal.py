"""A report on the terminal."""

from typing import Any

import rich.table
from rich.console import Console
from rich.text import Text

from pipeline.report import label_tables
from pipeline.report.anomalies import Anomaly, everything
from pipeline.report.corpus import Row
from pipeline.report.table import METER_WIDTH, Column, Table, size

POOR_METER = 0.1  # below it a meter is red


def show(console: Console, found: Row, anomalies: list[Anomaly]) -> None:
    totals = (
        f"  {found['recordings']:,} recordings ({found['validation']:,} for validation), "
        f"{found['hours']:,.2f} h, {found['segments']:,} segments in {found['shards']:,} shards, "
        f"{size(found['bytes'])}"
    )
    console.print(Text.assemble((found["out"], "bold"), totals))
    for table in label_tables.tables(found).values():
        if table.rows:
            console.print("", drawn(table), sep="\n")
    if lacking := ", ".join(found["not_gathered"]):
        console.print(f"\nnot gathered by the version that labelled this OUT: {lacking}")
    _worth_a_look(console, anomalies)


def drawn(table: Table) -> rich.table.Table:
    out = rich.table.Table(
        box=None,
        pad_edge=False,
        title=Text(table.title, "bold"),
        caption=Text(table.note, "red" if table.is_warning else ""),
        title_justify="left",
        caption_justify="left",
    )
    for column in table.columns.values():
        justify = "right" if column.is_right else "left"
        out.add_column(Text(column.head), justify=justify, header_style="dim", overflow="fold")
    for row in table.rows:
        out.add_row(*(_cell(column, row[key]) for key, column in table.columns.items()))
    return out


def _cell(column: Column, value: Any) -> Text:
    cell = Text(column.text(value))
    if column.kind == "meter":
        full = round(value * METER_WIDTH)
        cell.stylize("red" if value < POOR_METER else "green", 0, full)
        cell.stylize("dim", full)
    return cell


def segments(console: Console, rows: list[Row], counted: Row) -> None:
    console.print(drawn(label_tables.segments(rows)))
    some = f"; {len(rows)} shown" if counted["segments"] > len(rows) else ""
    console.print(label_tables.amount(**counted) + some)


def _worth_a_look(console: Console, anomalies: list[Anomaly]) -> None:
    heading = "[bold]Worth a look[/]" if anomalies else "worth a look: nothing unusual was found"
    console.print(f"\n{heading}")
    for one in anomalies:
        many = label_tables.amount(one.segments, one.recordings, one.hours) + ": " if one.segments else ""
        console.print(Text.assemble((f"  {one.what}", "yellow"), f"  {many}{one.why}"))
        if one.examples:
            console.print(Text(f"      e.g. {', '.join(one.examples)}"))
        console.print(Text(f"      {one.exclude}"), soft_wrap=True)
    option = everything(anomalies)
    if option and sum(bool(one.where) for one in anomalies) > 1:
        console.print(Text(f"  all of it left out of training:\n      {option}"), soft_wrap=True)
