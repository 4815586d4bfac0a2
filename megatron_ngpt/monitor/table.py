"""The table of metrics: every value that a run tells of itself, what it means, and where it is healthy.

`metrics.jsonl`, TensorBoard, reports and docs/monitoring.md read it. `python -m megatron_ngpt.monitor.table` prints the page's table.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_ngpt.console import show_anything

Value = float | list | dict | None
By = Literal["", "dataset", "task"]


@dataclass(frozen=True)
class Metric:
    """One value.

    Attributes:
        name: in metrics.jsonl.
        unit: of the number; empty for a pure number.
        meaning: what a person should know of it.
        tag: in TensorBoard; None: it is not there.
        low, high: the bounds between which it is healthy; None: no bound.
        first: it belongs on the first page, of which a person sees whether a run is well, how fast and how long still.
        by: the value is one number, or, of each dataset or task, a number by name.
    """

    name: str
    unit: str
    meaning: str
    tag: str | None = None
    low: float | None = None
    high: float | None = None
    first: bool = False
    by: By = ""

    @property
    def range(self) -> str:
        """The healthy range in words; empty: there is none."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.high is not None:
            return f"at most {self.high:g}"
        return "" if self.low is None else f"at least {self.low:g}"

    def healthy(self, number: float) -> bool:
        """Whether the number lies between the bounds; NaN does not."""
        return not (number != number or (self.low is not None and number < self.low) or (self.high is not None and number > self.high))


TRAINING = (
    Metric("loss", "nats a token", "mean over the global batch, before the update", "1 health/loss", first=True),
    Metric("out_of_range", "values", "numbers of this line that are outside of their healthy range; they are named in the log and, in "
           "TensorBoard, in the text of this name", "1 health/out_of_range", high=0, first=True),
    Metric("grad_norm", "", "norm of all gradients, before clipping", "1 health/norm_of_gradients", first=True),
    Metric("lr", "", "learning rate that the update used", "training/lr"),
    Metric("tokens", "tokens", "trained on since the run began", "training/tokens"),
    Metric("step_seconds", "s", "mean of the steps since the last line, without evaluations and checkpoints", "2 pace/step_seconds"),
    Metric("tokens_per_second", "tokens/s", "of all ranks together", "2 pace/tokens_per_second", first=True),
    Metric("tflops_per_second", "TFLOP/s", "model FLOPs, a device", "2 pace/tflops_per_second"),
    Metric(
        "max_norm_error", "", "largest difference of a unit vector's length from 1 in the fp32 masters, after rescaling; rounding is 1e-7",
        "sphere/max_norm_error", 0.0, 1e-6,
    ),
)  # fmt: skip
VALIDATION = (
    Metric("valid_loss", "nats a token", "mean over the validation datasets", "1 health/loss", first=True),
    Metric("tasks", "", "of each task of training.eval_tasks, by the task's name and its measure", "tasks", by="task"),
    Metric("valid", "nats a token", "of each validation dataset", "validation", by="dataset"),
)
CHECKPOINTS = (  # of a step that is over: TensorBoard alone has them
    Metric("checkpoint_seconds", "s", "from the start of a checkpoint's writing to its end", "checkpoint/seconds"),
    Metric("checkpoint_stall_seconds", "s", "of these, what training waited for", "checkpoint/stall_seconds"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*TRAINING, *VALIDATION, *CHECKPOINTS)}


def tagged(values: dict[str, Value]) -> dict[str, float]:
    """Those of the values (by name) that are known and have a tag, by tag; of several datasets each under its name."""
    found = {}
    for name, value in values.items():
        metric = METRICS.get(name)
        if metric is None or metric.tag is None or value is None:
            continue
        if not metric.by:
            found[metric.tag] = value
        elif metric.by != "dataset" or len(value) > 1:  # one alone is what the mean says
            found |= {f"{metric.tag}/{key}": number for key, number in value.items() if number is not None}
    return found


def unhealthy(values: dict[str, Value]) -> dict[str, str]:
    """Those of the values (by name) that are outside of their healthy range: a line for each, which says the number and the range."""
    found = {}
    for name, value in values.items():
        metric = METRICS.get(name)
        parts = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {"": value}
        for key, number in parts.items() if metric else ():
            if isinstance(number, (int, float)) and not metric.healthy(number):
                full = f"{name}/{key}" if len(parts) > 1 or key != "" else name
                found[full] = f"{full} = {number:g}: healthy is {metric.range or 'a finite number'}"
    return found


def markdown() -> str:
    """The table of docs/monitoring.md."""
    lines = []
    for title, metrics in (("Training lines", TRAINING), ("Validation lines", VALIDATION), ("Checkpoints", CHECKPOINTS)):
        lines += [f"### {title}", "", "| name | unit | healthy | in TensorBoard | meaning |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| `{m.name}` | {m.unit} | {m.range} | {_tag(m)} | {m.meaning} |" for m in metrics]
        lines.append("")
    return "\n".join(lines)


def _tag(metric: Metric) -> str:
    return "" if metric.tag is None else f"`{metric.tag}`" + (f"/{metric.by.upper()}" if metric.by else "")


if __name__ == "__main__":
    show_anything()
    print(markdown())
