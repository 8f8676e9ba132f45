"""`overtone doctor`: a line for each need, what is missing named with its remedy, and never a long wait."""

import json
import socket
import time

import pytest

from pipeline import doctor
from pipeline.cli import main
from tests.object_store import served

NAMES = [
    *(
        "python",
        "overtone",
        "torch",
        "ray",
        "av",
        "duckdb",
        "encodec",
        "deepspeed",
        "matplotlib",
        "tensorboard",
    ),
    *("plotly", "GPU", "S3", "Ray", "disk", "C++ compiler", "Chromium", "/dev/shm", "open files"),
]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("RAY_ADDRESS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "CXX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quick(monkeypatch):
    """The three checks in processes, replaced by their answers."""

    class Pool:
        def __init__(self, count):
            self.answers = iter(found)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def apply_async(self, look, arguments):
            return Answer(next(self.answers))

    class Answer:
        def __init__(self, answer):
            self.answer = answer

        def get(self, limit_s):
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    found = ["no card", "not configured", "started here"]
    context = type("Context", (), {"Pool": Pool})
    monkeypatch.setattr(doctor.multiprocessing, "get_context", lambda method: context)
    return found


def as_json(capsys, *arguments: str) -> tuple[int, dict[str, dict]]:
    code = main(["doctor", "--json", *arguments])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == (code == 0)
    return code, {check["name"]: check for check in found["checks"]}


def test_this_machine_is_fine_within_ten_seconds(overtone):
    since = time.monotonic()
    done = overtone("doctor")
    assert time.monotonic() - since < 10 and done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if not line[2:].startswith("disk")]
    assert [line[2:14].strip() for line in lines] == [name for name in NAMES if name != "disk"]
    assert all(line[0] in "✓!" for line in lines) and "GiB free in" in done.stdout


def test_what_is_not_installed_is_named_with_its_use_and_remedy(quick, monkeypatch, capsys):
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else installed(name))
    absent = {"plotly", "tensorboard", "encodec"}
    code, found = as_json(capsys)
    assert code == 0 and list(dict.fromkeys(found)) == NAMES
    assert not found["plotly"]["fine"] and not found["plotly"]["needed"]
    assert found["plotly"]["text"].endswith("pip install 'overtone[report]'")
    absent = {"deepspeed"}
    code, found = as_json(capsys)
    assert code == 1 and found["deepspeed"]["text"] == (
        "deepspeed is not installed, needed for training: pip install 'overtone[train]'"
    )
    assert main(["doctor"]) == 1 and "\n✗ deepspeed    deepspeed is not" in capsys.readouterr().out
    absent = {"ray"}
    code, found = as_json(capsys)
    assert code == 0 and found["ray"]["text"] == (
        "ray is not installed, needed for labels and training (`labels --plain` and `python -m "
        "stages.pretrain` go without): pip install 'overtone'"
    )


@pytest.mark.parametrize("name, place", [("GPU", 0), ("S3", 1), ("Ray", 2)])
def test_a_check_that_fails_or_does_not_answer(quick, capsys, name, place):
    quick[place] = OSError("no such host\nand a long story")
    code, found = as_json(capsys)
    assert code == 1 and found[name] == {"name": name, "fine": False, "text": "no such host", "needed": True}
    quick[place] = doctor.multiprocessing.TimeoutError()
    code, found = as_json(capsys)
    assert (code, found[name]["text"]) == (int(name != "GPU"), "no answer within 8 s")  # a GPU is not needed


def test_the_machine(quick, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: False)
    code, found = as_json(capsys)
    assert code == 0, "none of these is needed"
    assert found["C++ compiler"]["text"] == "none: torch.compile and DeepSpeed's own operators need one"
    assert found["open files"]["text"] == "1024: Ray recommends 8192 (ulimit -n 65535)"
    assert not any(found[name]["fine"] for name in ("C++ compiler", "Chromium", "/dev/shm", "open files"))
    full = type("Usage", (), {"free": doctor.GIB - 1, "total": 9 * doctor.GIB})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: full)
    code, found = as_json(capsys)
    assert code == 1 and not found["disk"]["fine"] and "1.0 GiB free in" in found["disk"]["text"]


def test_the_compiler_is_the_one_that_torch_takes(quick, monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    assert as_json(capsys)[1]["C++ compiler"]["text"] == "/bin/g++"
    monkeypatch.setenv("CXX", "clang++-18")
    assert as_json(capsys)[1]["C++ compiler"]["text"] == "/bin/clang++-18"


def test_an_object_store(monkeypatch):
    assert doctor._s3(None) == "not configured"
    with served("labels"):
        assert doctor._s3("s3://labels/not/there/yet") == "s3://labels/not/there/yet answers"
        assert doctor._s3(None).endswith(" answers")
        with pytest.raises(ValueError, match="s3://other: there is no such bucket"):
            doctor._s3("s3://other")
        with pytest.raises(ValueError, match="no such bucket"):
            doctor._s3("/tmp")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(
            ValueError, match="AWS_ENDPOINT_URL http://127.0.0.1:.* does not answer: .*refused"
        ):
            doctor._s3(None)


def test_a_cluster(monkeypatch):
    assert "RAY_ADDRESS names no cluster" in doctor._ray()
    tried = []
    monkeypatch.setattr("cluster.session.reachable", tried.append)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert doctor._ray() == "RAY_ADDRESS head:6379 answers" and tried == ["head:6379"]


def test_cards_are_named_with_their_memory(monkeypatch):
    import torch

    assert "none that torch can use" in doctor._gpu() or torch.cuda.device_count()
    card = type("Card", (), {"name": "NVIDIA H100", "total_memory": 80 * doctor.GIB})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    assert doctor._gpu() == "NVIDIA H100, 80 GiB; NVIDIA H100, 80 GiB"


def test_servers_that_never_answer_do_not_hold_it_up(overtone):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port, since = server.getsockname()[1], time.monotonic()
        environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "RAY_ADDRESS": f"127.0.0.1:{port}"}
        done = overtone("doctor", "--s3", "s3://bucket", **environment)
    assert done.returncode == 1 and time.monotonic() - since < 15
    assert done.stdout.count("no answer within 8 s") >= 2, done.stdout
