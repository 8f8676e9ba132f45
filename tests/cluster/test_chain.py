"""The chain on real Ray: a shard that kills its worker is given up, and takes no other along."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from cluster.session import session
from cluster.sharded import Link, run_chain


@dataclass(frozen=True)
class Work:
    """Finishes every shard but `deadly`, at which its process dies."""

    stage: str
    deadly: str | None = None

    def __call__(self) -> Callable[[str], dict]:
        return self.run

    def run(self, shard: str) -> dict:
        if shard == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"shard": shard, "stage": self.stage, "status": "finished"}


def test_a_shard_that_kills_its_worker_is_given_up(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    events = []
    with session(2) as ray_session:
        links = [Link("one", Work("one", deadly="s2")), Link("two", Work("two"))]
        rows = {row["shard"]: row for row in run_chain(links, ["s0", "s1", "s2", "s3"], ray_session, 2, events.append)}
    assert rows.keys() == {"s0", "s1", "s2", "s3"}
    assert rows["s2"]["failed"] == "one" and "died 2 times" in rows["s2"]["error"]
    assert all("failed" not in rows[s] and rows[s]["two"] == "finished" for s in ("s0", "s1", "s3"))
    begun = [e for e in events if e["event"] == "begin" and e["stage"] == "one" and e["shard"] == "s2"]
    assert len(begun) == 3  # two that died, one that was given up
    assert not [e for e in events if e["stage"] == "two" and e["shard"] == "s2"]
