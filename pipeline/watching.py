"""`overtone status OUT --watch`: what a `labels` run is doing, by its log, from any terminal or machine."""

import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from typing import Any

from pipeline.labelling.progress import LOG_PARTS
from stages.shards.names import printable
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

WINDOW_S = 600.0  # of what speeds are
ENDS = {"end": "it has ended", "stopped": "it was stopped", "failed": "it has failed"}


class Watched:
    """The latest run of an OUT. `read` takes what was logged since the last time."""

    def __init__(self, out: Storage):
        self.out, self._offset, self._half, self._parts = out, 0, b"", set()
        self._reset({"time": 0.0})

    def _reset(self, event: dict[str, Any]) -> None:
        self.since, self.last, self.state = event["time"], event["time"], "it goes on"
        self.totals: dict[str, int] = {}
        self.counts: dict[str, Counter] = defaultdict(Counter)  # of stages
        self.work: deque[tuple[float, str, str, float]] = deque()  # time, stage, host, seconds of audio
        self.left_out: dict[tuple[str, str], str] = {}  # node and stage → why

    def read(self) -> "Watched":
        for line in self._lines():
            try:
                event = json.loads(line)
                self._feed(event["event"], event)
            except (ValueError, KeyError, TypeError):
                continue  # a line that a killed run tore
        return self

    def _lines(self) -> Iterator[bytes]:
        if self.out.is_local:
            if self.out.exists("log.jsonl"):
                with self.out.open("log.jsonl") as file:
                    file.seek(self._offset)
                    data = self._half + file.read()
                    self._offset = file.tell()
                *whole, self._half = data.split(b"\n")
                yield from whole
            return
        for name in sorted(self.out.names(LOG_PARTS) - self._parts):
            self._parts.add(name)
            yield from self.out.read(f"{LOG_PARTS}/{name}").splitlines()

    def _feed(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "start":
            self._reset(event)
        self.last = event["time"]
        self.state = ENDS.get(kind, self.state)
        if kind == "stages":
            self.totals, self.counts = event["totals"], defaultdict(Counter)
        elif kind == "shard-end":
            finished = event["status"] != "failed"
            self.counts[event["stage"]].update(done=finished, failed=not finished)
            self.counts[event["stage"]]["rejected"] += event.get("rejected", 0)
            if event["status"] == "finished":
                audio_s = event.get("samples", 0) / RATE_HZ
                self.work.append((event["time"], event["stage"], event.get("host", ""), audio_s))
        elif kind == "shard-again":
            self.counts[event["stage"]]["tried again"] += 1
        elif kind.endswith("left-out"):
            self.left_out[event["node"], event.get("stage", "")] = event["error"]

    def text(self, now: float) -> str:
        if not self.since:
            return f"{printable(self.out.root)}: no run has begun yet"
        while self.work and self.work[0][0] < now - WINDOW_S:
            self.work.popleft()
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        last = _span(now - self.last)
        head = f"{printable(self.out.root)}: run of {began}, {self.state}; last word {last} ago"
        lines = [head, *(self._stage(name, now) for name in self.totals)]
        hosts = sorted({host for _, _, host, _ in self.work})
        for host in hosts if len(hosts) > 1 else ():
            speeds = (f"{name} {self._speed(now, name, host):.0f}" for name in self.totals)
            lines.append(f"  {host}: audio-s/s {', '.join(speeds)}")
        for (node, stage), why in self.left_out.items():
            lines.append(f"  node {node} is left out{f' for {stage}' if stage else ''}: {printable(why)}")
        return "\n".join(lines)

    def _stage(self, name: str, now: float) -> str:
        counts, total = self.counts[name], self.totals[name]
        own = [when for when, stage, _, _ in self.work if stage == name]
        parts = [f"  {name:<7}{counts['done']:>9}/{total} shards"]
        if speed := self._speed(now, name):
            parts.append(f"{speed:.0f} audio-s/s")
        if len(own) > 1 and own[-1] > own[0]:
            pace = (len(own) - 1) / (own[-1] - own[0])
            parts.append(f"{_span((total - counts['done'] - counts['failed']) / pace)} left")
        parts += [f"{counts[what]} {what}" for what in ("rejected", "failed", "tried again") if counts[what]]
        return "  ".join(parts)

    def _speed(self, now: float, name: str, host: str | None = None) -> float:
        """Seconds of audio a second, of what was done in the window, or since the run began."""
        done = sum(s for _, stage, where, s in self.work if stage == name and host in (None, where))
        return done / max(1.0, min(WINDOW_S, now - self.since))


def _span(seconds: float) -> str:
    seconds = max(0, round(seconds))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def watch(place: str, every_s: float) -> None:
    """Print anew every so many seconds until Ctrl-C, or the run's end."""
    out = Storage(place)
    if out.is_gone():
        raise ValueError(f"{place} is no folder: give the OUT of a `labels` run")
    watched = Watched(out)
    while True:
        print(watched.read().text(time.time()), flush=True)
        if watched.state in ENDS.values():
            return
        time.sleep(every_s)
