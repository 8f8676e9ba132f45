"""Published figures of frozen encoders, to be seen beside a measured one. published.csv holds them times 100,
as printed; more is better in all of them. Protocols differ: a point or two between two of them says nothing.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from stages.config import require

PATH = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class Row:
    model: str
    parameters_m: float | None  # millions; None where the source does not say
    task: str  # as in `sets`
    metric: str
    value: float  # times 100
    protocol: str
    source: str


def published(path: Path = PATH) -> list[Row]:
    """ValueError naming a line without a figure or a source."""
    with open(path, newline="", encoding="utf-8") as file:
        return [_row(path, line, cells) for line, cells in enumerate(csv.DictReader(file), 2)]


def beside(task: str, metric: str, value: float, model: str, parameters_m: float | None = None) -> list[Row]:
    """The rows of a task and metric, the best first, with the measured one (times 100) among them; it alone
    if nobody published any."""
    own = Row(model, parameters_m, task, metric, value, "measured here", "")
    others = [row for row in published() if (row.task, row.metric) == (task, metric)]
    return sorted([own, *others], key=lambda row: -row.value)


def _row(path: Path, line: int, cells: dict[str, str]) -> Row:
    where = f"{path} line {line}"
    require(None not in cells and None not in cells.values(), where, list(cells.values()), "expected 7 cells")
    for name in ("model", "task", "metric", "protocol", "source"):
        require(bool(cells[name]), f"{where}: {name}", "", "every figure needs one")
    try:
        parameters_m = float(cells["parameters_m"]) if cells["parameters_m"] else None
        return Row(**cells | {"parameters_m": parameters_m, "value": float(cells["value"])})
    except ValueError:
        raise ValueError(f"{where}: parameters_m and value must be numbers") from None
