"""The kind of machine, as its system tells it, and the refusal of another one."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.pools import check_machine
from stages.label import machine as module
from stages.label.machine import another, machine, of_device, recorded
from stages.shards.storage import Storage

AVX2 = "fpu sse4_2 fma avx avx2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"


def proc(folder: Path, flags: str, *models: str) -> str:
    folder.mkdir()
    (folder / "cpuinfo").write_text(
        f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n"
    )
    for number, model in enumerate(models):
        place = folder / "driver/nvidia/gpus" / f"0000:{number:02}"
        place.mkdir(parents=True)
        (place / "information").write_text(f"Model: \t\t {model}\nIRQ: 24\n")
        (folder / "driver/nvidia/version").write_text(DRIVER)
    return str(folder)


def test_a_machine_is_known_by_what_its_sums_depend_on(tmp_path):
    here = module.platform.machine()
    assert machine(proc(tmp_path / "a", AVX512)) == {"cpu": f"{here} AVX512"}
    assert machine(proc(tmp_path / "b", AVX2)) == {"cpu": f"{here} AVX2"}
    assert machine(proc(tmp_path / "c", "fpu sse2")) == {"cpu": f"{here} no AVX2"}
    assert machine(str(tmp_path / "none")) == {"cpu": f"{here} no AVX2"}
    two = proc(tmp_path / "d", AVX2, "NVIDIA H100", "NVIDIA H100")
    assert machine(two) == {"cpu": f"{here} AVX2", "gpu": "NVIDIA H100 driver 550.54.15"}


def test_the_capability_is_torchs():
    torch = pytest.importorskip("torch")
    seen = torch.backends.cpu.get_cpu_capability()
    assert machine()["cpu"].endswith(seen if seen.startswith("AVX") else "no AVX2")


def test_a_stage_on_the_cpu_does_not_depend_on_the_gpu(monkeypatch):
    both = {"cpu": "x AVX2", "gpu": "H100 driver 1"}
    monkeypatch.setattr(module, "machine", lambda: both)
    assert of_device("cpu") == {"cpu": "x AVX2"} and of_device("cuda:1") == both


def test_the_first_kind_counts_and_others_are_named():
    kinds = {}
    assert another({"cpu": "AVX512"}, kinds) == "" and kinds == {"cpu": {"AVX512"}}
    assert another({"cpu": "AVX512", "gpu": "H100"}, kinds) == "" and kinds["gpu"] == {"H100"}
    assert another({"cpu": "AVX512"}, kinds) == ""
    assert another({"cpu": "AVX512", "gpu": "A100"}, kinds) == "its gpu is A100, labels so far are of H100"
    assert another({"cpu": "AVX2"}, kinds) == "its cpu is AVX2, labels so far are of AVX512"
    assert kinds == {"cpu": {"AVX512"}, "gpu": {"H100"}}
    assert another({"cpu": "AVX2"}, {"cpu": {"AVX2", "AVX512"}}) == ""  # they were mixed by choice


def test_what_was_recorded_is_of_the_columns_in_use(tmp_path):
    storage = Storage(tmp_path)
    assert recorded(storage, ("audio",)) == {}
    facts = [{"machine": {"cpu": "a"}}, {"machine": {"cpu": "b", "gpu": "g"}}, {}, {"machine": {"cpu": "z"}}]
    columns = ["audio", "codes-1", "codes-1", "codes-old"]
    rows = {"shard": ["s1", "s1", "s2", "s1"], "column": columns, "facts": list(map(json.dumps, facts))}
    storage.write_table("shards.parquet", pa.table(rows))
    assert recorded(storage, ("audio", "codes-1")) == {"cpu": {"a", "b"}, "gpu": {"g"}}


def test_another_machine_is_refused_unless_they_may_be_mixed():
    assert check_machine("node b", {"cpu": "AVX2"}, None) is None
    with pytest.raises(ValueError) as error:
        check_machine("node b", {"cpu": "AVX2"}, {"cpu": {"AVX512"}})
    assert str(error.value) == (
        "node b: its cpu is AVX2, labels so far are of AVX512; the same audio may get other labels there: "
        "leave it out, or allow it with run.mixed_devices=true"
    )
