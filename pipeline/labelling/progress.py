"""Progress of a run: a screen on a terminal, plain lines elsewhere, JSON lines in OUT/log.jsonl, or, on an
object store, whose objects cannot grow, in OUT/log/*.jsonl."""

import contextlib
import itertools
import json
import os
import platform
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

LINE_S = 10.0  # between plain lines
UPLOAD_S = 30.0  # between parts of the log on an object store
LOG_PARTS = "log"


@dataclass
class StageProgress:
    total: int
    done: int = 0
    failed: int = 0
    rejected: int = 0
    again: int = 0
    audio_s: float = 0.0
    started: float | None = None


class Progress:
    def __init__(self, out: Storage):
        self.out, self.console = out, Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.stages: dict[str, StageProgress] = {}
        self.attempts: dict[tuple[str, str], int] = {}  # by (column, shard)
        self.note, self._live, self._lines, self._lock = "", None, [], threading.RLock()
        self._printed = self._uploaded = 0.0
        self._parts = itertools.count()
        self._own = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{platform.node()}-{os.getpid()}"

    def log(self, event: str, **facts: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, default=str) + "\n"
        # Events come from threads; who writes the labels reports an error of the disk.
        with self._lock, contextlib.suppress(OSError):
            if self.out.is_local:
                with open(self.out.local("log.jsonl"), "a") as file:
                    file.write(line)
                return
            self._lines.append(line)
            if time.monotonic() - self._uploaded > UPLOAD_S or event in ("end", "stopped", "failed"):
                self._uploaded = time.monotonic()
                self.out.write(
                    f"{LOG_PARTS}/{self._own}-{next(self._parts):06}.jsonl", "".join(self._lines).encode()
                )
                self._lines = []

    @property
    def log_place(self) -> str:
        return self.out.path("log.jsonl" if self.out.is_local else f"{LOG_PARTS}/{self._own}-*.jsonl")

    def say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(line, markup=False)

    def status(self, text: str, last: bool = False) -> None:
        """What is being done now, when it is no stage over shards (scan, fit). `last`: of its step."""
        with self._lock:
            self.note = text
            if self.console.is_terminal and not self._live:
                self.console.print(text, markup=False, end="\r")
            elif last and not self._live:
                self.say(text)
            else:
                self._printed = self._printed or time.monotonic()  # counts are worth a line after a while
                self._show(text)

    def _show(self, *lines: str) -> None:
        """Refresh the screen, or print these if the last lines are `LINE_S` old."""
        if self._live:
            self._live.update(self._table())
        elif time.monotonic() - self._printed > LINE_S:
            self._printed = time.monotonic()
            self.say(*lines)

    def start(self, totals: dict[str, int]) -> None:
        self.stages = {name: StageProgress(total) for name, total in totals.items()}
        self.note, self._printed = "", time.monotonic()
        self.log("stages", totals=totals)
        if self.console.is_terminal:
            self._live = Live(self._table(), console=self.console, refresh_per_second=2)
            self._live.start()

    def event(self, event: dict) -> None:
        """What `cluster.chain` tells: begin and end of a shard at a stage, what is tried again, and nodes."""
        with self._lock:
            kind, stage = event["event"], self.stages.get(event.get("stage"))
            facts = {k: v for k, v in event.items() if k not in ("event", "made")}
            self.log(f"shard-{kind}" if kind in ("begin", "end", "again") else kind, **facts)
            if kind.endswith("left-out"):
                of = f" for {event['stage']}" if stage else ""
                self.say(f"node {event['node']} is left out{of}: {event['error']}")
            elif kind == "node-joined":
                self.say(f"node {event['node']} joined")
            elif kind == "crowded":
                self.say(f"others hold the CPUs of node {event['node']}: {event['stage']} goes on elsewhere")
            elif kind == "canary":
                self.say(canary_line(event))
            elif kind == "waits":
                self.say(f"{event['stage']} waits for a node with {event['gpus']:g} GPU")
            if stage is None:
                return
            if kind == "begin":
                stage.started = stage.started or time.time()
            elif kind == "again":
                stage.again += 1
            elif kind == "end":
                stage.failed += event["status"] == "failed"
                stage.done += event["status"] != "failed"
                stage.rejected += event.get("rejected", 0)
                if event.get("column") and event.get("attempts"):
                    self.attempts[event["column"], event["shard"]] = event["attempts"]
                if event["status"] == "finished":
                    stage.audio_s += event.get("samples", 0) / RATE_HZ
            self._show(*self.lines())

    def stop(self) -> None:
        if self._live:
            self._live.update(self._table())
            self._live.stop()
            self._live = None
        else:
            self.say(*self.lines())
        self.stages = {}

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Per stage: name, done/total, audio-seconds a second, time left, rejected and failed."""
        rows = []
        for name, s in self.stages.items():
            elapsed, left = time.time() - s.started if s.started else 0.0, ""
            if s.done:
                seconds = int(elapsed / s.done * (s.total - s.done))
                left = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            speed = f"{s.audio_s / elapsed:.0f}" if elapsed and s.audio_s else ""
            counts = ((s.rejected, "rejected"), (s.failed, "failed"), (s.again, "tried again"))
            problems = ", ".join(f"{n} {what}" for n, what in counts if n)
            rows.append((name, f"{s.done}/{s.total}", speed, left, problems))
        return rows

    def lines(self) -> list[str]:
        lines = []
        for name, done, speed, left, problems in self.rows():
            parts = f"{name:<7}{done:>11} shards", speed and f"{speed} audio-s/s", left and f"{left} left"
            lines.append("  ".join(filter(None, (*parts, problems))))
        return lines

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, caption=self.note or None)
        for title in ("stage", "shards", "audio-s/s", "left", ""):
            table.add_column(title, justify="left" if title in ("stage", "") else "right")
        for row in self.rows():
            table.add_row(*row)
        return table


def canary_line(event: dict) -> str:
    """How one shard went through the stages on a node of one kind."""
    parts = []
    for name, seen in event["stages"].items():
        wall_s, audio_s = seen.get("wall_s") or 0.0, (seen.get("samples") or 0) / RATE_HZ
        speed = f", {audio_s / wall_s:.0f} audio-s/s" if wall_s and audio_s else ""
        parts.append(f"{name} {seen['status']} in {wall_s:.1f} s{speed}")
    parts += [event["error"]] if event["error"] else []
    return f"first shard on {event['node'] or 'no node'} ({event['kind']}): {'; '.join(parts)}"
