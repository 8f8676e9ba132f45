"""What nodes are sent of a user's modules, and that they can import it."""

import importlib
import sys
import textwrap

import pytest

from cluster.modules import own_modules
from cluster.session import session
from cluster.sharded import StageSpec, run_chain
from cluster.simulate import simulated
from stages.label.base import Needs

WORKER = """
    from dataclasses import dataclass
    import ray
    {helper}

    @dataclass(frozen=True)
    class Opens:
        stage: str

        def __call__(self):
            return self.run

        def run(self, shard, planned=None):
            seen = {{"node": ray.get_runtime_context().get_node_id(), "level": LEVEL}}
            return {{"shard": shard, "stage": self.stage, "status": "finished"}} | seen
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes modules where only this process finds them, and imports one: gives its name and its folder."""
    kept = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, **files: str):
        for path, text in files.items():
            file = tmp_path / f"{path.replace('__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return importlib.import_module(name), tmp_path

    yield write
    for name in set(sys.modules) - kept:
        if name.partition(".")[0] in ("mine", "helping", "lab"):
            del sys.modules[name]


def test_a_module_takes_along_what_it_has_imported_from_its_folder(written):
    _, folder = written("mine", mine="import numpy, helping, lab.a", helping="", other="", lab__a="")
    assert own_modules("mine") == sorted(str(folder / name) for name in ("helping.py", "lab", "mine.py"))
    assert own_modules("lab.a") == own_modules("mine"), "a package goes as its folder"


@pytest.mark.parametrize("name", ["stages.label.teachers.mel_rvq", "numpy", "torch.nn", "json", ""])
def test_what_nodes_have_is_not_sent(name):
    assert own_modules(name) == []


@pytest.mark.timeout(240)
def test_nodes_import_it_also_those_that_join_late(written, monkeypatch):
    """A file with a helper beside it, and a package: neither is on any path of the nodes."""
    mine, folder = written(
        "mine",
        mine=WORKER.format(helper="from helping import LEVEL\n    import lab.inner"),
        helping="LEVEL = 7",
        lab__inner=WORKER.format(helper="from lab.deep import LEVEL"),
        lab__deep="LEVEL = 8",
    )
    inner, events = sys.modules["lab.inner"], []
    with simulated(1, 2) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with session(own="mine") as started:
            links = [
                StageSpec("one", mine.Opens("one")),
                StageSpec("two", inner.Opens("two"), Needs(1, gpus=1)),
            ]

            def on_event(event):
                events.append(event)
                if event["event"] == "waits":
                    cluster.add_node(num_cpus=2, num_gpus=1)

            rows = list(run_chain(links, ["s0", "s1"], started, 1, on_event))
    assert [row.get("two") for row in rows] == ["finished"] * 2, rows
    ends = {e["stage"]: e for e in events if e["event"] == "end"}
    assert (ends["one"]["level"], ends["two"]["level"]) == (7, 8)
    assert ends["one"]["node"] != ends["two"]["node"]
