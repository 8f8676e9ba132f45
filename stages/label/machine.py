"""The kind of machine that labels are made on: float sums, and so some label bytes, differ between kinds."""

import json
import platform
import re
from functools import cache
from pathlib import Path

import pyarrow.compute as pc

from stages.shards import parts
from stages.shards.storage import Storage

# What torch and OpenBLAS choose their kernels by, the widest first.
CAPABILITIES = {"AVX512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"}, "AVX2": {"avx2", "fma"}}
Kinds = dict[str, set[str]]  # part (cpu, gpu) → what it is


@cache
def machine(proc: str = "/proc") -> dict[str, str]:
    """cpu: architecture and widest vector instructions; gpu, where there is one: models and driver."""
    try:
        flags = set(re.search(r"^flags\s*:(.*)$", Path(proc, "cpuinfo").read_text(), re.M)[1].split())
    except (OSError, TypeError):
        flags = set()
    widest = next((name for name, needs in CAPABILITIES.items() if needs <= flags), "no AVX2")
    found = {"cpu": f"{platform.machine()} {widest}"}
    models = set()
    for path in sorted(Path(proc, "driver/nvidia/gpus").glob("*/information")):
        models |= set(re.findall(r"^Model:\s*(.*?)\s*$", path.read_text(), re.M))
    if models:
        version = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", Path(proc, "driver/nvidia/version").read_text())
        driver = f" driver {version[1]}" if version else ""
        found["gpu"] = f"{', '.join(sorted(models))}{driver}"
    return found


def of_device(device: str) -> dict[str, str]:
    """What the bytes of a stage on this device may depend on."""
    here = machine()
    return here if device.startswith("cuda") else {"cpu": here["cpu"]}


def another(seen: dict[str, str], kinds: Kinds) -> str:
    """Which part of a machine is of another kind than those before; empty, and noted, if none is."""
    for part, kind in seen.items():
        if kinds.get(part) and kind not in kinds[part]:
            return f"its {part} is {kind}, labels so far are of {', '.join(sorted(kinds[part]))}"
    for part, kind in seen.items():
        kinds.setdefault(part, set()).add(kind)
    return ""


def recorded(storage: Storage, columns: tuple[str, ...]) -> Kinds:
    """Of the gathered shards of these columns; older records do not say."""
    found: Kinds = {}
    table = parts.read(storage, "shards", ["column", "facts"])
    if table.num_rows:
        own = table.filter(pc.field("column").isin(columns))["facts"]
        told = pc.extract_regex(own, r'"machine": (?P<machine>\{[^}]*\})').combine_chunks()
        for text in pc.unique(told.field("machine")).drop_null().to_pylist():
            for part, kind in json.loads(text or "{}").items():
                found.setdefault(part, set()).add(kind)
    return found
