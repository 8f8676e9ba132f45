"""Tables too large for memory: a DuckDB that spills to disk."""

from pathlib import Path

import duckdb


def connect(scratch: Path, memory_gb: float) -> duckdb.DuckDBPyConnection:
    """A database that spills to the folder `scratch` beyond `memory_gb`."""
    settings = {"memory_limit": f"{memory_gb}GB", "temp_directory": str(scratch), "threads": 2}
    return duckdb.connect(":memory:", config={**settings, "preserve_insertion_order": False})
