"""Rows of RUN/metrics.jsonl under their present names, whichever version wrote them. Needs no torch."""

from typing import Any

OLD_NAMES = {
    "gain": "gain_over_unigram",
    "gain_low": "gain_over_unigram_low",
    "gain_high": "gain_over_unigram_high",
    "rate": "lr",
}


def renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {OLD_NAMES.get(name, name): value for name, value in row.items()}


def with_old_names(row: dict[str, Any]) -> dict[str, Any]:
    """For `--json`, whose readers may know the old names."""
    return row | {old: row[new] for old, new in OLD_NAMES.items() if new in row}
