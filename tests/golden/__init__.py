"""Golden facts: what the quickstart's labels and a small training run were at one commit, written down once.

`labels.json` and `training.json` beside this file were made at commit 11f8a36. A test that fails here says
that a change shifted bytes or numbers that users have. Where that was the purpose, `python -m tests.golden`
writes the files anew, and the commit says why.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


def write(name: str, facts: dict[str, Any]) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
