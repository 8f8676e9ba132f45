"""Tables too large for memory: a DuckDB that spills to disk."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa

from stages.shards import parts
from stages.shards.storage import Storage


def connect(scratch: Path, memory_gb: float) -> duckdb.DuckDBPyConnection:
    """A database that spills to the folder `scratch` beyond `memory_gb`."""
    settings = {"memory_limit": f"{memory_gb}GB", "temp_directory": str(scratch), "threads": 2}
    return duckdb.connect(":memory:", config={**settings, "preserve_insertion_order": False})


def gathered(
    db: duckdb.DuckDBPyConnection, storage: Storage, name: str, stack: contextlib.ExitStack
) -> tuple[str, list[str]]:
    """(what to select from, local paths) of a table of finished shards with its parts, which are there until
    the stack closes. FileNotFoundError where there is none."""
    there = parts.present(storage, name)
    if not there:
        raise FileNotFoundError(storage.path(parts.file(name)))
    with ThreadPoolExecutor(parts.AT_ONCE) as pool:
        copies = [storage.fetched(parts.file(name, part)) for part in there]
        paths = [str(path) for path in pool.map(stack.enter_context, copies)]
    listed = ", ".join(map(quoted, paths))
    places = dict(zip(there, paths, strict=True))
    # after a kill, a table may lack its own file, though that of `shards` is there
    gone = {part: rows for part, rows in parts.superseded(storage, name).items() if part in places}
    if not gone:
        return f"read_parquet([{listed}], union_by_name = true)", paths
    marked = [t.append_column("filename", pa.repeat(places[part], len(t))) for part, t in gone.items()]
    db.register(f"gone_of_{name}", pa.concat_tables(marked))
    keys = ", ".join(f'"{key}"' for key in marked[0].column_names)
    table = f"read_parquet([{listed}], union_by_name = true, filename = true)"
    return f"(SELECT * EXCLUDE (filename) FROM {table} ANTI JOIN gone_of_{name} USING ({keys}))", paths


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def lock(db: duckdb.DuckDBPyConnection, paths: list[str], storage: Storage) -> None:
    """Before a user's own condition is run: from here on only these files are read, and lists below the
    report's folder; no extension is loaded, and none of this can be changed back."""

    def listed(names: list[str]) -> str:
        return ", ".join(map(quoted, names))

    folders = [storage.path("report")] if storage.is_local else []
    db.execute(
        f"""SET allowed_paths = [{listed(paths)}];
        SET allowed_directories = [{listed(folders)}];
        SET autoinstall_known_extensions = false;
        SET autoload_known_extensions = false;
        SET enable_external_access = false;
        SET lock_configuration = true"""
    )
