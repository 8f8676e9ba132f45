"""Work on many shards: the same in threads and on the nodes of a cluster, `verify` and `merge` with it."""

import contextlib
import shutil

import pytest
import ray

from cluster.simulate import simulated
from pipeline.merge import merge
from pipeline.spread import spread
from pipeline.verify import verify
from stages.shards.storage import Storage
from tests.conftest import tars

SHARDS = [f"s{n}" for n in range(12)]


def work(shard: str, payload: str) -> tuple[str, str]:
    if shard == "s3":
        raise OSError("no answer")
    return payload, ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"


def defect(shard: str, payload: str) -> None:
    raise ZeroDivisionError(shard)


@pytest.fixture(scope="module")
def cluster():
    """Of two nodes of one CPU."""
    with simulated(2, 1) as cluster:
        yield cluster.address


@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_each_shard_has_what_its_work_gave(where, tmp_path, cluster, monkeypatch):
    if where == "cluster":
        monkeypatch.setenv("RAY_ADDRESS", cluster)
    seen = Storage(tmp_path)
    found = dict(spread("try", work, SHARDS, seen, lambda shard: shard.upper()))
    refused = found.pop("s3")
    assert isinstance(refused, OSError) and str(refused) == "no answer"
    assert {shard: payload for shard, (payload, _) in found.items()} == {
        shard: shard.upper() for shard in SHARDS if shard != "s3"
    }
    assert len({node for _, node in found.values()}) == (2 if where == "cluster" else 1)
    with pytest.raises(ZeroDivisionError):
        list(spread("try", defect, SHARDS, seen))


def test_verify_and_merge_do_the_same_on_a_cluster(labelled, tmp_path, cluster, monkeypatch, capsys):
    shutil.copytree(labelled, tmp_path / "out")
    out = str(tmp_path / "out")
    merge(out, str(tmp_path / "here"))
    first = sorted((tmp_path / "out/columns/audio").glob("*.tar"))[0]
    data = bytearray(first.read_bytes())
    data[-2000] ^= 1
    first.write_bytes(data)
    capsys.readouterr()
    assert verify(out, False) == 1
    said = capsys.readouterr().out
    assert f"damaged  audio/{first.stem}: " in said
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    assert verify(out, False) == 1
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(said.splitlines())
    merge(str(labelled), str(tmp_path / "there"))
    assert tars(tmp_path / "there") == tars(tmp_path / "here")
    first.unlink()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "there")
    with pytest.raises(ValueError, match="1 shards are not finished"):
        merge(out, str(tmp_path / "there"))
