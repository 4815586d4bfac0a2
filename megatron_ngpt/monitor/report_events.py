"""What a report says of the events and the recipes of its runs, and the colours by which runs are told apart."""

import json
import time
from collections.abc import Iterator
from itertools import groupby

from megatron_ngpt.config.load import by_key
from megatron_ngpt.monitor.run_record import RunRecord
from megatron_ngpt.pages import COLOURS, Html, colour, dot, element, escaped, table

MARKED = {
    "start": "started", "veto": "update vetoed", "rollback": "rolled back", "checkpoint_failed": "checkpoint lost",
    "stop": "asked to stop",
    "watchdog": "ended by the watchdog",
}  # fmt: skip


def marks(runs: list[RunRecord]) -> Iterator[dict]:
    """Events that curves show: all but a start at step 0, checkpoints that went well, and the end."""
    for number, run in enumerate(runs):
        for event in run.events:
            kind = event["event"]
            if kind in MARKED and (kind != "start" or event["step"]):
                text = f"{run.name}, step {event['step']:,}: {MARKED[kind]}"
                yield {"run": number, "step": event["step"], "kind": kind, "color": colour(number), "text": text}


def events_table(runs: list[RunRecord]) -> Html:
    """What happened, in order of time; checkpoints that nothing lies between in one row."""
    rows = sorted(row for number, run in enumerate(runs) for row in _rows(number, run))
    if not rows:
        return element("p", "No events.jsonl in these runs.", class_="faint")
    lines = []
    for when, number, steps, words in rows:
        name = [Html(dot(colour(number)) + escaped(runs[number].name))] if len(runs) > 1 else []
        lines.append([time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)), *name, steps, words])
    return table(["time", *(["run"] if len(runs) > 1 else []), "step", "event"], lines)


def _rows(number: int, run: RunRecord) -> Iterator[tuple[float, int, str, Html]]:
    """(time, the run's number, its step or steps, what happened)."""
    told = [event for event in run.events if isinstance(event.get("time"), int | float) and isinstance(event.get("step"), int)]
    for kind, group in groupby(told, key=lambda event: event["event"]):
        events = list(group)
        if kind != "checkpoint" or len(events) < 3:
            for event in events:
                yield event["time"], number, f"{event['step']:,}", _in_words(event)
            continue
        first, last = events[0], events[-1]
        seconds, stalls = (sum(event.get(key) or 0 for event in events) for key in ("seconds", "stall_seconds"))
        words = f"{len(events)} checkpoints, the last {last.get('path')}: {seconds:.1f} s, training waited {stalls:.2f} s for them"
        yield first["time"], number, f"{first['step']:,} to {last['step']:,}", escaped(words)


def _in_words(event: dict) -> Html:
    kind = event["event"]
    if kind == "start":
        begun = f"goes on from {event['resumed_from']}" if event.get("resumed_from") else "begins"
        notes = [note for note in event.get("notes") or [] if not note.startswith("continues from")]
        head = escaped(f"{begun}; {event.get('ranks')}, version {event.get('code')}")
        told = [element("li", note) for note in notes]
        return Html(head + (element("ul", *told) if told else "") + element("div", event.get("layout", ""), class_="faint"))
    said = {
        "checkpoint": lambda: f"checkpoint {event['path']}: {event['seconds']:.1f} s, training waited {event['stall_seconds']:.2f} s",
        "checkpoint_failed": lambda: f"a checkpoint could not be written: {event['error']}",
        "veto": lambda: f"the update was vetoed: {event['why']}; {event['command']} shows its samples",
        "rollback": lambda: f"steps {' to '.join(map(str, event['vetoed']))} were vetoed: rolled back to {event['checkpoint']}",
        "watchdog": lambda: f"every rank was ended: {event['found']}",
        "straggler": lambda: event["found"],
        "stop": lambda: f"asked to stop ({event['asked'] or 'on another rank'})",
        "end": lambda: event["outcome"] + (f": {event['error']}" if event.get("error") else ""),
    }
    return escaped(said[kind]() if kind in said else json.dumps(event))


def recipes(runs: list[RunRecord]) -> Iterator[Html]:
    """Of several runs the keys that differ; each recipe whole, to be unfolded."""
    if len(runs) > 1:
        keys = [by_key(run.recipe) for run in runs]
        differing = [key for key in dict.fromkeys(key for one in keys for key in one) if len({str(one.get(key)) for one in keys}) > 1]
        yield table(["key", *(run.name for run in runs)], [[key, *(one.get(key, "") for one in keys)] for key in differing])
    for run in runs:
        path = run.path / "recipe.yaml"
        if path.is_file():
            yield element("details", element("summary", str(path)), element("pre", path.read_text("utf-8", "replace")))


def shade(place: int, of: int) -> str:
    """The colours of values that are counted, such as layers: from blue to red."""
    return colour(place) if of <= len(COLOURS) else f"hsl({240 - 240 * place / (of - 1):.0f} 65% 50%)"
