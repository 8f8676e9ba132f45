"""What the driver hears of a run, on the Prometheus endpoint of its Ray node, if `ray[default]` is installed
there; without it Ray drops the numbers."""

from ray.util.metrics import Counter, Gauge

from cluster.pools import StageSpec
from stages.signal.rates import RATE_HZ

PREFIX = "overtone_labels_"
OF = ("stage", "node")
COUNTED = {
    "shards_finished": "Shards that a stage has finished, or had before",
    "shards_failed": "Shards given up at a stage",
    "shards_retried": "Shards begun again at a stage",
    "audio_seconds": "Audio that a stage has done",
}


class Metrics:
    """Takes the events of a chain."""

    def __init__(self, specs: list[StageSpec], shards: int):
        self._counters = {name: Counter(PREFIX + name, what, OF) for name, what in COUNTED.items()}
        self._pending = Gauge(f"{PREFIX}shards_pending", "Shards still to come at a stage", ("stage",))
        self._out = Gauge(f"{PREFIX}nodes_left_out", "Nodes that are not used, for any stage")
        self._left, self._nodes = {spec.name: shards for spec in specs}, set()
        self._out.set(0)
        for stage, left in self._left.items():
            self._pending.set(left, {"stage": stage})

    def add(self, event: dict) -> None:
        kind, stage = event["event"], event.get("stage", "")
        if kind.endswith("left-out"):
            self._nodes.add(event["node"])
            self._out.set(len(self._nodes))
        elif kind == "again":
            self._count("shards_retried", event)
        elif kind == "end":
            failed = event["status"] == "failed"
            self._count("shards_failed" if failed else "shards_finished", event)
            if event["status"] == "finished":
                self._count("audio_seconds", event, event.get("samples", 0) / RATE_HZ)
            names = list(self._left)
            for name in names[names.index(stage) :] if failed else [stage]:  # it goes no further
                self._left[name] -= 1
                self._pending.set(self._left[name], {"stage": name})

    def _count(self, name: str, event: dict, by: float = 1.0) -> None:
        if by:  # Ray refuses 0
            self._counters[name].inc(by, {"stage": event["stage"], "node": event.get("host") or ""})
