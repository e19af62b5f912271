"""A run as lines of JSON, one event a line, for log collectors; events.schema.json says what each event holds."""

import json
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, TextIO

from omniprep.observe.command import event_line
from omniprep.observe.totals import Totals

SECONDS = 5.0
"""Between progress events of a stage: enough to draw a curve, few enough to keep."""
SHOWN_TASKS = {"plan": "split_finished"}
"""The event of a finished task, by stage; those of the other stages write shards."""


def events_schema() -> dict[str, Any]:
    """The JSON schema of an event."""
    schema: dict[str, Any] = json.loads(files("omniprep.observe").joinpath("events.schema.json").read_text("utf-8"))
    return schema


class JsonLog(Totals):
    """Writes events to a stream; each line is flushed, so that a kill loses none that was written."""

    def __init__(self, stream: TextIO, command: str, interval: float = SECONDS) -> None:
        super().__init__()
        self.stream, self.command, self.interval = stream, command, interval
        self.written: dict[str, float] = {}
        """When the last progress of each stage was written."""

    def wants_rejects(self) -> bool:
        """Every reject is logged."""
        return True

    def start(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """Write stage_started; the first progress follows after `interval` seconds."""
        super().start(stage, total, unit)
        self.written[stage] = time.monotonic()
        self.write("stage_started", {"stage": stage, "total": total, "unit": unit})

    def advance(self, stage: str, n: int = 1, *, tokens: int = 0, rejects: int = 0) -> None:
        """Count, and write progress where the last is old enough."""
        super().advance(stage, n, tokens=tokens, rejects=rejects)
        if time.monotonic() - self.written[stage] >= self.interval:
            self.written[stage] = time.monotonic()
            self.write("progress", self.stages[stage].facts())

    def finish(self, stage: str) -> None:
        """Write stage_finished."""
        if stage in self.stages and self.stages[stage].running:
            super().finish(stage)
            self.write("stage_finished", self.stages[stage].facts())

    def message(self, text: str) -> None:
        """Write the line for people as an event."""
        self.write("message", {"text": text})

    def show_reject(self, text: str) -> None:
        """Nothing: the row is an event."""

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write the event; of finished tasks those of this run alone."""
        super().event(name, facts)
        if name != "task":
            self.write(name, facts)
        elif not facts["before"]:
            shown = {key: value for key, value in facts.items() if key != "before"}
            self.write(SHOWN_TASKS.get(facts["stage"], "shard_finished"), shown)

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write one line."""
        with self.lock:
            print(event_line(self.command, event, facts), file=self.stream, flush=True)
