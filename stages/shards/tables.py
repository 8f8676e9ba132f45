"""Tables too large for memory: a DuckDB that spills to disk."""

from pathlib import Path

import duckdb

from stages.shards.storage import Storage


def connect(scratch: Path, memory_gb: float) -> duckdb.DuckDBPyConnection:
    """A database that spills to the folder `scratch` beyond `memory_gb`."""
    settings = {"memory_limit": f"{memory_gb}GB", "temp_directory": str(scratch), "threads": 2}
    return duckdb.connect(":memory:", config={**settings, "preserve_insertion_order": False})


def lock(db: duckdb.DuckDBPyConnection, paths: list[str], storage: Storage) -> None:
    """Before a user's own condition is run: from here on only these files are read, and lists below the
    report's folder; no extension is loaded, and none of this can be changed back."""

    def listed(names: list[str]) -> str:
        return ", ".join("'" + name.replace("'", "''") + "'" for name in names)

    folders = [storage.path("report")] if storage.is_local else []
    db.execute(
        f"""SET allowed_paths = [{listed(paths)}];
        SET allowed_directories = [{listed(folders)}];
        SET autoinstall_known_extensions = false;
        SET autoload_known_extensions = false;
        SET enable_external_access = false;
        SET lock_configuration = true"""
    )
