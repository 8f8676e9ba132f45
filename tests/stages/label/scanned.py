"""Scans of one folder for the tests: what was probed, and what became of each file."""

import os
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile

from stages.label.scan import probe_pool
from stages.label.scan.scan import scan
from stages.shards.catalog import read_catalog

COUNTING = """
from stages.label.scan.probing import probe as real
def probe(path):
    with open({log!r}, "ab") as log:
        log.write(path.hex().encode() + b"\\n")
    return real(path)
"""


class Scans:
    """Scans of one folder, each after the other; knows which files the last one probed."""

    def __init__(self, tmp_path: Path):
        self.music = tmp_path / "music"
        self.music.mkdir()
        self.catalog = tmp_path / "catalog.parquet"
        self.log = tmp_path / "log"
        self.known = {}
        (tmp_path / "overtone_counting_probe.py").write_text(COUNTING.format(log=str(self.log)))

    def __call__(self, *roots, probe="overtone_counting_probe:probe", **options):
        self.log.write_bytes(b"")
        places = [str(r) for r in roots] or [str(self.music)]
        with mock.patch.object(probe_pool, "PROBE", probe):
            self.summary = scan(places, self.catalog, self.catalog, **{"workers": 2, **options})
        s = self.summary
        assert s.found == s.kept + s.rejected + s.duplicates
        self.rows = read_catalog(self.catalog).to_pylist()
        assert len(self.rows) == s.found + s.excluded
        kept = [r["recording"] for r in self.rows if r["status"] == "kept"]
        assert len(set(kept)) == len(kept), "one id, one recording"
        assert self.rows == sorted(self.rows, key=lambda r: r["path_bytes"])
        return s

    @property
    def probed(self) -> list[str]:
        paths = [bytes.fromhex(line) for line in self.log.read_text().split()]
        return sorted(os.fsdecode(os.path.basename(p)) for p in paths)

    def row(self, name: str | bytes) -> dict:
        (row,) = [r for r in self.rows if r["path_bytes"].endswith(b"/" + os.fsencode(name))]
        return row

    def write(
        self, name: str | bytes, seed: int = 0, seconds: float = 0.1, folder: Path | None = None
    ) -> Path:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder or self.music), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = np.random.default_rng(seed).integers(-9000, 9000, int(seconds * 44_100)).astype(np.int16)
        with open(path, "wb") as file:
            soundfile.write(file, wave, 44_100, format="WAV")
        return path


def edit_middle(path: Path, value: bytes, mtime_ns: int) -> None:
    """Change bytes that the quick hash does not see."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(value)
    os.utime(path, ns=(mtime_ns, mtime_ns))
