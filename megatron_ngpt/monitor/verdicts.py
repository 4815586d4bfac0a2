"""What is well with a run and what is not, in words: values outside the ranges that the table of metrics has, and what its events tell."""

import math
import statistics
import time
from collections.abc import Iterator

from megatron_ngpt.monitor.run_record import RunRecord, Series

Verdict = tuple[str, str]  # good, warn or bad; a sentence
SLOWER = 0.9  # of the best tenth's pace: less is worth a word
RISE = 0.02  # nats of a loss over its best
SURE = 4  # standard errors by which the mean of a part must lie above the best one's
COUNT = "out_of_range"  # of the other values, which are told themselves
PART = 10  # parts of a run that are compared
STALL = 0.01  # of the run's time that checkpoints held training up


def verdicts(run: RunRecord) -> list[Verdict]:
    """Of one run, the worst first."""
    found = [*_ending(run), *_happened(run), *_ranges(run), *_finite(run), *_loss(run), *_pace(run), *_stalls(run)]
    return sorted(found, key=lambda verdict: ("bad", "warn", "good").index(verdict[0]))


def state(run: RunRecord) -> str:
    """finished, stopped, failed; or what it is where no end is told."""
    last = next((event for event in reversed(run.events) if event["event"] in ("start", "end")), None)
    if last is None:
        return "unknown"
    return last.get("outcome", "unknown") if last["event"] == "end" else "running or killed"


def _ending(run: RunRecord) -> Iterator[Verdict]:
    """Where the run stands."""
    of = f" of {run.steps:,}" if run.steps else ""
    now = state(run)
    last = run.events[-1] if run.events else {}
    if not run.training:
        yield "bad", "no step is told in metrics.jsonl"
    elif now == "failed":
        yield "bad", f"failed after step {last['step']:,}{of}: {last.get('error')}"
    elif now == "running or killed":
        yield "warn", f"at step {run.last_step:,}{of}, last heard of at {_when(run.heard)}: it is still running, or was killed"
    elif run.steps and run.last_step < run.steps:
        yield "warn", f"{'stopped as asked' if now == 'stopped' else 'ends'} at step {run.last_step:,}{of}"
    else:
        yield "good", f"trained to step {run.last_step:,}{of}"


def _happened(run: RunRecord) -> Iterator[Verdict]:
    """Vetoes, lost checkpoints and restarts."""
    vetoes = [event for event in run.events if event["event"] == "veto"]
    if vetoes:
        last = vetoes[-1]
        yield "warn", f"{_times(len(vetoes), 'update')} vetoed, the last of step {last['step']:,}: {last.get('why')}"
    if back := [event for event in run.events if event["event"] == "rollback"]:
        yield "warn", f"rolled back {_times(len(back), 'time')} from steps vetoed in a row, the last time to step {back[-1]['step']:,}"
    lost = [event for event in run.events if event["event"] == "checkpoint_failed"]
    if lost:
        last = lost[-1]
        yield "warn", f"{_times(len(lost), 'checkpoint')} could not be written, the last of step {last['step']:,}: {last.get('error')}"
    killed = [one for one, then in zip(run.events, _later_starts(run), strict=True) if one["event"] == "start" and then]
    if killed:
        yield "warn", f"started {_times(len(killed), 'time')} again after an end that nobody told: killed, or its machine was"


def _later_starts(run: RunRecord) -> list[bool]:
    """Of each event, whether the next start or end after it is a start."""
    kinds = [event["event"] for event in run.events]
    return [next((kind for kind in kinds[place + 1 :] if kind in ("start", "end")), "") == "start" for place in range(len(kinds))]


def _ranges(run: RunRecord) -> Iterator[Verdict]:
    """Each value that left its healthy range; if none did, how many were looked at."""
    watched, left = 0, 0
    for series in run.series():
        metric = series.metric
        if metric.name == COUNT or (metric.low is None and metric.high is None):
            continue
        watched += 1
        out = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if not metric.healthy(value)]
        if out:
            left += 1
            yield _left(series, out)
    if watched and not left:
        yield "good", f"what has a healthy range ({_times(watched, 'value')}) kept within it at all {len(run.lines):,} lines"


def _left(series: Series, out: list[tuple[int, float]]) -> Verdict:
    metric = series.metric
    name = f"{metric.name}{f' of {series.key}' if series.key else ''}"
    low, high = (-math.inf if metric.low is None else metric.low), (math.inf if metric.high is None else metric.high)
    step, worst = max(out, key=lambda place: max(low - place[1], place[1] - high))
    still = out[-1][0] == series.steps[-1]
    now = "still outside" if still else f"back within since step {next(s for s in series.steps if s > out[-1][0]):,}"
    unit = f" {metric.unit}" if metric.unit else ""
    outside = f"outside at {len(out):,} of {len(series.steps):,} lines, {now}"
    return ("bad" if still else "warn"), f"{name} was {worst:.4g}{unit} at step {step:,} (healthy: {metric.range}); {outside}"


def _finite(run: RunRecord) -> Iterator[Verdict]:
    """A loss that is none."""
    for name, what in (("loss", "loss"), ("valid_loss", "validation loss")):
        lines = [line["step"] for line in run.lines if name in line and line[name] is None]
        if lines:
            yield "bad", f"the {what} is not finite at {_times(len(lines), 'step')}, first at step {lines[0]:,}"


def _loss(run: RunRecord) -> Iterator[Verdict]:
    """Whether losses fall."""
    losses = [line["loss"] for line in run.training if line["loss"] is not None]
    parts = _parts(losses)
    if len(parts) == PART:
        means = [statistics.fmean(part) for part in parts]
        best = means.index(min(means))
        if means[-1] > means[best] + max(RISE, SURE * math.hypot(_error(parts[best]), _error(parts[-1]))):
            lowest = f"{means[best]:.4f} over its {_nth(best + 1)} tenth"
            yield "warn", f"the loss rises: {means[-1]:.4f} over the last tenth of the run, {lowest}"
        else:
            yield "good", f"the loss went from {means[0]:.4f} over the first tenth of the run to {means[-1]:.4f} over the last"
    valid = [(line["step"], line["valid_loss"]) for line in run.lines if line.get("valid_loss") is not None]
    if len(valid) > 1:
        step, best = min(valid, key=lambda place: place[1])
        if valid[-1][1] > best + RISE:
            yield "warn", f"the validation loss rises since step {step:,}: {best:.4f} there, {valid[-1][1]:.4f} at step {valid[-1][0]:,}"


def _pace(run: RunRecord) -> Iterator[Verdict]:
    """Whether the run became slower."""
    parts = _parts([line["tokens_per_second"] for line in run.training[1:] if line.get("tokens_per_second")])
    if len(parts) < PART:
        return
    middles = [statistics.median(part) for part in parts]
    if middles[-1] < SLOWER * max(middles):
        yield "warn", f"slower than it was: {middles[-1]:,.0f} tokens/s over the last tenth of the run, {max(middles):,.0f} over its best"
    else:
        yield "good", f"the pace holds: {middles[-1]:,.0f} tokens/s over the last tenth of the run"


def _stalls(run: RunRecord) -> Iterator[Verdict]:
    """What checkpoints cost, but for the one at the end, which nothing waits for."""
    saved = [event for event in run.events if event["event"] == "checkpoint" and event["step"] < run.last_step]
    stalls = [event["stall_seconds"] for event in saved if "stall_seconds" in event]
    hours = run.places([run.last_step])["hours"][0]
    if stalls and hours and sum(stalls) > STALL * hours * 3600:
        share = sum(stalls) / hours / 3600
        yield "warn", f"training waited {sum(stalls):.1f} s for {_times(len(stalls), 'checkpoint')}, {share:.1%} of its time"


def _parts(values: list[float]) -> list[list[float]]:
    """The values in `PART` runs of about one length; fewer where there are too few to compare."""
    size = len(values) / PART
    return [values[round(place * size) : round((place + 1) * size)] for place in range(PART)] if size >= 2 else []


def _error(values: list[float]) -> float:
    """The standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _times(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _nth(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"


def _when(seconds: float) -> str:
    """A time of day, in this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
