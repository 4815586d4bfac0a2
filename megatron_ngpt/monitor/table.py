"""The table of metrics: every value that a run tells of itself, what it means, and where it is healthy.

`metrics.jsonl`, TensorBoard, reports and docs/monitoring.md read it. `python -m megatron_ngpt.monitor.table` prints the page's table.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from megatron_ngpt.console import show_anything

Value = float | list | dict | None
By = Literal["", "dataset", "source", "task", "kind", "matrix", "layer"]


@dataclass(frozen=True)
class Metric:
    """One value.

    Attributes:
        name: in metrics.jsonl.
        unit: of the number; empty for a pure number.
        meaning: what a person should know of it.
        tag: in TensorBoard; None: it is not there.
        low, high: the bounds between which it is healthy; None: no bound.
        by: the value is one number; or, of each dataset of `data.valid`, source of `data.train`, task or kind of parameter, a number by
            name; or a list, a number a layer; or of each kind of matrix such a list by its name (one number for those of the two ends).
    """

    name: str
    unit: str
    meaning: str
    tag: str | None = None
    low: float | None = None
    high: float | None = None
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
    Metric("loss", "nats a token", "mean over the global batch, before the update", "1 health/loss"),
    Metric("out_of_range", "values", "newest numbers that are outside of their healthy range; they are named in the log and, in "
           "TensorBoard, in the text of this name", "1 health/out_of_range", high=0),
    Metric("loss_by_source", "nats a token", "of the rows of each source, where there are several", "training/loss", by="source"),
    Metric("grad_norm", "", "norm of all gradients, before clipping", "1 health/norm_of_gradients"),
    Metric("clipped", "share", "of the steps since the last line, those whose gradients were clipped", "training/clipped"),
    Metric("lr", "", "learning rate that the update used", "training/lr"),
    Metric("tokens", "tokens", "trained on since the run began", "training/tokens"),
    Metric("epochs", "passes", "over each source, since the run or its phase (another context) began", "training/epochs", by="source"),
    Metric("percent_done", "%", "steps of `training.steps`", "2 pace/percent_done"),
    Metric("seconds_left", "s", "by the mean time of a step since the run started, evaluations and checkpoints included",
           "2 pace/seconds_left"),
    Metric("step_seconds", "s", "mean of the steps since the last line, without evaluations and checkpoints", "2 pace/step_seconds"),
    Metric("seconds_data", "s", "of the logged step on rank 0, waiting for rows, which are read a step ahead", "time of a step/data"),
    Metric("seconds_forward_backward", "s", "of the logged step on rank 0, forward and backward passes, without collectives",
           "time of a step/forward_backward"),
    Metric("seconds_communication", "s", "of the logged step on rank 0, collectives that it waited for, and so for other ranks",
           "time of a step/communication"),
    Metric("seconds_optimizer", "s", "of the logged step on rank 0, clip, optimiser, renormalisation, new weights, without collectives",
           "time of a step/optimizer"),
    Metric("seconds_rest", "s", "of the logged step on rank 0, all else: under `log_every: 1` the writing of the line before too",
           "time of a step/rest"),
    Metric("tokens_per_second", "tokens/s", "of all ranks together", "2 pace/tokens_per_second"),
    Metric("tflops_per_second", "TFLOP/s", "model FLOPs, a device", "2 pace/tflops_per_second"),
    Metric("utilisation", "share", "model FLOPs of what the device could do: its data sheet's, or, where that is not known and on a CPU, "
           "what a large matrix product reached at the start", "2 pace/utilisation"),
    Metric("device_memory_peak", "GiB", "most that tensors took since the last line, of the rank that had most; null on a CPU",
           "memory/device_peak"),
    Metric("device_memory_reserved", "GiB", "that torch has taken from the device, of the rank that has most; null on a CPU",
           "memory/device_reserved"),
    Metric("host_memory", "GiB", "resident, of the rank that has most", "memory/host"),
    Metric("host_memory_available", "GiB", "of the host that has least", "memory/host_available", low=0.5),
    Metric("restarts", "", "starts of the run directory after its first", "history/restarts"),
    Metric("vetoed_steps", "", "updates that moved nothing, since loss or gradient norm was not finite or far above its history; those "
           "whose samples are skipped by now count too", "history/vetoed_steps"),
    Metric("norm_error_before", "", "largest difference of a unit vector's length from 1 after the optimiser's move, before rescaling; "
           "null without spherical weights", "sphere/norm_error_before", 0.0, 0.5),
    Metric("max_norm_error", "", "the same in the fp32 masters after rescaling: rounding is 1e-7", "sphere/max_norm_error", 0.0, 1e-6),
)  # fmt: skip
VALIDATION = (
    Metric("valid_loss", "nats a token", "mean over the validation datasets", "1 health/loss"),
    Metric("tasks", "", "of each task of training.eval_tasks, by the task's name and its measure", "tasks", by="task"),
    Metric("valid", "nats a token", "of each validation dataset", "validation", by="dataset"),
)
CHECKPOINTS = (  # of a step that is over: TensorBoard alone has them
    Metric("checkpoint_seconds", "s", "from the start of a checkpoint's writing to its end", "checkpoint/seconds"),
    Metric("checkpoint_stall_seconds", "s", "of these, what training waited for", "checkpoint/stall_seconds"),
)
RATES = "eigen learning rates α of the {}: {} over the hidden axis; they start at `model.scales.alpha.init`"
OBSERVED = (  # at every `monitor.every` steps, a line of their own
    *(
        Metric(f"alpha_{part}{end}", "", RATES.format(words, which), f"alpha_{part}{end}", low, high, by="layer")
        for part, words in (("attention", "attention's move"), ("mlp", "feed-forward's move"))
        for end, which, low, high in (("", "mean", 0.005, 1.0), ("_low", "a tenth lies below", None, None),
                                      ("_high", "a tenth lies above", None, None))
    ),
    Metric("s_qk", "", "scale of normalised queries and keys, mean", "s_qk", 0.1, 10.0, by="layer"),
    Metric("s_u", "", "scale of the feed-forward's linear half, mean", "s_u", 0.1, 10.0, by="layer"),
    Metric("s_g", "", "scale of its gated half without √hidden, mean", "s_g", 0.1, 10.0, by="layer"),
    Metric("s_z", "", "scale of the logits, mean over the vocabulary", "s_z/mean", 0.1, 300.0),
    Metric("s_z_low", "", "a tenth of the vocabulary lies below", "s_z/low"),
    Metric("s_z_high", "", "a tenth of the vocabulary lies above", "s_z/high"),
    Metric("angle_attention", "rad", "between h before the attention's move and after it, mean over tokens", "angle_attention", 0.0, 1.2,
           by="layer"),
    Metric("angle_mlp", "rad", "between h before the feed-forward's move and after it, mean over tokens", "angle_mlp", 0.0, 1.2,
           by="layer"),
    Metric("cosine_attention", "", "of h and what the attention's move aims at, mean over tokens", "cosine_attention", by="layer"),
    Metric("cosine_mlp", "", "of h and what the feed-forward's move aims at, mean over tokens", "cosine_mlp", by="layer"),
    Metric("entropy_attention", "nats", "of what a query attends to, mean over heads and 16 queries a sequence, evenly spread",
           "entropy_attention", low=0.1, by="layer"),
    Metric("entropy_predictions", "nats", "of the predicted next token, mean over tokens", "entropy_predictions", low=0.05),
    Metric("step_angle", "rad", "by which this update turned a matrix's unit vectors, mean of at most 256 of them; TensorBoard has the "
           "mean over layers", "step_angle", 0.0, 0.3, by="matrix"),
    Metric("grad_norm_by_kind", "", "norm of the gradients of all parameters of a kind, before clipping; their squares add up to "
           "`grad_norm`'s", "grad_norm", by="kind"),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*TRAINING, *VALIDATION, *OBSERVED, *CHECKPOINTS)}


def tagged(values: dict[str, Value]) -> dict[str, float]:
    """Those of the values (by name) that are known and have a tag, by tag: of several things each under its name, of layers also the
    mean."""
    found = {}
    for name, value in values.items():
        metric = METRICS.get(name)
        if metric is None or metric.tag is None or value is None or (metric.by == "dataset" and len(value) < 2):  # one alone is the mean
            continue
        if isinstance(value, list):
            value = {"mean of layers": fmean(value)} | {f"layer {number:03}": of_layer for number, of_layer in enumerate(value)}
        if not isinstance(value, dict):
            found[metric.tag] = value
            continue
        for key, number in value.items():
            if number is not None:
                found[f"{metric.tag}/{key}"] = fmean(number) if isinstance(number, list) else number
    return found


def unhealthy(values: dict[str, Value]) -> dict[str, str]:
    """Those of the values (by name) that are outside of their healthy range: a line for each, which says the number and the range."""
    found = {}
    for name, value in values.items():
        if metric := METRICS.get(name):
            for full, number in flat({name: value}).items():
                if not metric.healthy(number):
                    found[full] = f"{full} = {number:g}: healthy is {metric.range or 'a finite number'}"
    return found


def flat(values: dict[str, Value]) -> dict[str, float]:
    """The numbers in `values` that are known: those of a dict or a list each by its name and its key or place, `valid/web`,
    `step_angle/q/3`."""
    found = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            found |= flat({f"{name}/{key}": inner for key, inner in value.items()})
        elif isinstance(value, (int, float)):
            found[name] = value
    return found


TABLES = (
    ("Training lines", TRAINING), ("Validation lines", VALIDATION), ("Lines at every `monitor.every` steps", OBSERVED),
    ("Checkpoints", CHECKPOINTS),
)  # fmt: skip


def markdown() -> str:
    """The table of docs/monitoring.md."""
    lines = []
    for title, metrics in TABLES:
        lines += [f"### {title}", "", "| name | unit | healthy | in TensorBoard | meaning |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| `{m.name}` | {m.unit} | {m.range} | {_tag(m)} | {m.meaning} |" for m in metrics]
        lines.append("")
    return "\n".join(lines)


def _tag(metric: Metric) -> str:
    return "" if metric.tag is None else f"`{metric.tag}`" + (f"/{metric.by.upper()}" if metric.by else "")


if __name__ == "__main__":
    show_anything()
    print(markdown())
