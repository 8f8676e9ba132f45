"""Files that are only described, and scans of them: identity without audio and processes."""

import dataclasses
import hashlib
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from stages.label.scan.identity import HASHED, LISTING, PROBED, Identity
from stages.label.scan.parts import NONE
from stages.label.scan.probing import recording_id
from stages.shards.catalog import CATALOG, read_catalog, write_parquet


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class File:
    """A file as a listing and its bytes show it: `ends` is what the quick hash sees, `middle` what it does
    not."""

    name: str = "a"
    root: str = "/m"
    size: int = 9
    mtime_ns: int = 1
    ends: str = "ends"
    middle: str = "middle"
    reason: str | None = None  # of the probe
    problem: str | None = None  # of the listing
    excluded: bool = False
    order: int = 0  # of its root
    path: str | None = None
    error: str | None = None  # of hashing

    @property
    def place(self) -> bytes:
        return (self.path or f"{self.root}/{self.name}").encode()

    @property
    def sha256(self) -> str:
        return digest(self.ends + self.middle)

    @property
    def id(self) -> str:
        return recording_id(self.name.encode(), self.size, digest(self.ends))

    @property
    def sha_id(self) -> str:
        return recording_id(self.name.encode(), self.size, digest(self.ends), self.sha256)

    def but(self, **values) -> "File":
        return dataclasses.replace(self, **values)


class Scans:
    def __init__(self, folder):
        self.folder, self.catalog = folder, folder / "catalog.parquet"

    def __call__(self, *files: File, known=None, retry=None) -> list[tuple[str | None, str]]:
        """(id, status) of each file's path, in the order of the arguments; `known` as in `scan`."""
        known = known or {}
        listing = [
            {"path_bytes": f.place, "name_bytes": f.name.encode(), "root": f.root,
             "root_order": f.order, "size": f.size, "mtime_ns": f.mtime_ns, "problem": f.problem,
             "excluded": f.excluded} for f in files
        ]  # fmt: skip
        by_path = {f.place: f for f in reversed(files)}
        self._write("listing", LISTING, listing)
        earlier = NONE.joined(self.folder / "earlier")
        with closing(
            Identity(self.folder / "listing", self.catalog, earlier, self.folder, retry)
        ) as identity:
            todo = list(identity.to_probe())
            self.probed = [path for path, *_ in todo]
            total, self.unchanged = identity.counts()
            assert total == len(todo)
            self._write("probed", PROBED, [self._facts(by_path[path], *rest, known) for path, *rest in todo])
            self.hashed = [path for path, *_ in identity.to_hash(self.folder / "probed")]
            hashes = [
                {
                    "path_bytes": path,
                    "sha256": None if by_path[path].error else by_path[path].sha256,
                    "error": by_path[path].error,
                }
                for path in self.hashed
            ]
            self._write("hashed", HASHED, hashes)
            write_parquet(self.catalog, CATALOG, identity.catalog(self.folder / "hashed"))
        rows = read_catalog(self.catalog).to_pylist()
        self.rows = {row["path_bytes"]: row for row in rows}
        assert len(rows) == len(self.rows) == len(by_path), "one row a path"
        assert [row["path_bytes"] for row in rows] == sorted(by_path)
        kept = [row["recording"] for row in rows if row["status"] == "kept"]
        assert len(set(kept)) == len(kept), "one id, one recording"
        return [(self.rows[f.place]["recording"], self.rows[f.place]["status"]) for f in files]

    def _write(self, name, schema, rows):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), self.folder / name)

    @staticmethod
    def _facts(file, name, size, mtime_ns, known):
        facts = {
            "path_bytes": file.place,
            "size": size,
            "mtime_ns": mtime_ns,
            "quick": digest(file.ends),
            "reason": file.reason,
            # fmt: skip
            "container": "wav",
            "codec": "pcm",
            "rate_hz": 8,
            "channels": 1,
            "duration_s": 1.0,
            "duration_from": "header",
        }
        base = recording_id(name, size, facts["quick"])
        return facts | {"base": base, "known_sha": known.get(base)}
