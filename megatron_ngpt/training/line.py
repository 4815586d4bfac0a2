"""What is told of a step, and when: the training line of metrics.jsonl, and now and then one of dear values (`monitor/table.py` says what
each value is)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_ngpt.config.costs.work import flops_per_token
from megatron_ngpt.data.batches import BatchSource, train_names
from megatron_ngpt.data.skips import count
from megatron_ngpt.monitor.devices import peak_flops
from megatron_ngpt.monitor.events import read_events
from megatron_ngpt.monitor.monitor import Monitor
from megatron_ngpt.monitor.progress import Pace
from megatron_ngpt.monitor.table import Value
from megatron_ngpt.training.engine import Engine
from megatron_ngpt.training.phase import Phase
from megatron_ngpt.training.preflight import Ready
from megatron_ngpt.training.update import StepResult
from megatron_ngpt.watchdog.rank import NOBODY, Unwatched

WORK = ("data", "forward_backward", "optimizer")  # phases in which a rank waits for nobody
HISTOGRAMS = 10  # of so many steps at which dear values are told, one tells histograms too


class TrainingLine:
    """Tells `monitor` of the steps of a run in the last of its `phases`, which trains on `batches`; of those before, so many were `vetoed`,
    without the ones that were skipped."""

    def __init__(
        self, ready: Ready, engine: Engine, batches: BatchSource, phases: list[Phase], monitor: Monitor, vetoed: int,
        watch: Unwatched = NOBODY,
    ):  # fmt: skip
        self._watch = watch
        self._recipe, self._batches, self._phase = ready.recipe, batches, phases[-1]
        self._engine, self._monitor = engine, monitor
        self._sources = train_names(ready.recipe)
        self._flops = flops_per_token(ready.recipe.model, ready.vocabulary) / engine.grid.world.size
        dtype = torch.bfloat16 if ready.deepspeed.bf16 else torch.float32
        self._peak = peak_flops(engine.device, dtype) if engine.grid.world.first else 1.0
        self._pace = Pace(ready.recipe.training.steps)
        events = read_events(Path(ready.recipe.training.output)) if engine.grid.world.first else []
        self._restarts = max(0, sum(line["event"] == "start" for line in events) - 1)
        self._vetoed = vetoed + sum(count(phase.skipped) for phase in phases)
        self._seen = self._clipped = 0

    def due(self, step: int) -> bool:
        """Whether `step`, which is about to begin, will be told of; where dear values will be, it is watched from now on."""
        training = self._recipe.training
        if self._observes(step):
            self._engine.observer.begin()
        return step % training.log_every == 0 or step == training.steps or self._observes(step)

    def tell(self, step: int, result: StepResult, lr: float) -> None:
        """Write what there is to tell of `step`, whose result has been read (collective where dear values are told)."""
        self._monitor.scalars(step, self.values(step, result, lr))
        if self._observes(step):
            self._engine.check_copies(step)
            found = self._engine.observe(self._batches.rows(step, 0, self._engine.probe_rows))
            self._monitor.scalars(step, found.values())
            if step // self._recipe.monitor.every % HISTOGRAMS == 1:
                self._monitor.histograms(step, found.scales())
            self._engine.clock.restart(step)

    def _observes(self, step: int) -> bool:
        return self._recipe.monitor.every > 0 and step % self._recipe.monitor.every == 0

    def saw(self, results: Sequence[StepResult]) -> None:
        """What steps learnt since the last line, looked at."""
        applied = [result for result in results if not result.vetoed]
        self._seen += len(applied)
        self._vetoed += len(results) - len(applied)
        self._clipped += sum(result.grad_norm > self._recipe.optimizer.clip for result in applied)

    def values(self, step: int, result: StepResult, lr: float) -> dict[str, Value]:
        """The line of `step`; begins the next one, and a lap of the clock."""
        clock = self._engine.clock
        phases, seconds = clock.phases(), clock.lap(step)
        self._watch.worked(sum(phases[phase] for phase in WORK))
        per_second = self._recipe.training.global_batch * self._recipe.model.context / seconds
        clips = self._recipe.optimizer.clip > 0 and self._seen > 0
        found: dict[str, Value] = {
            "tokens": self._phase.tokens_at(step),
            "percent_done": 100 * step / self._recipe.training.steps,
            "seconds_left": self._pace.seconds_left(step),
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "clipped": self._clipped / self._seen if clips else None,
            "lr": lr,
            "epochs": dict(zip(self._sources, self._batches.epochs(step), strict=True)),
            "step_seconds": seconds,
            **{f"seconds_{phase}": spent for phase, spent in phases.items()},
            "tokens_per_second": per_second,
            "tflops_per_second": self._flops * per_second / 1e12,
            "utilisation": self._flops * per_second / self._peak,
            **_memory(result),
            "restarts": self._restarts,
            "vetoed_steps": self._vetoed,
        }
        if result.source_losses:
            found["loss_by_source"] = self._by_source(step, result.source_losses)
        if self._recipe.model.arch == "ngpt":
            found |= {"norm_error_before": result.norm_errors.before, "max_norm_error": result.norm_errors.after}
        else:
            found |= {"norm_error_before": None, "max_norm_error": None}
        self._seen = self._clipped = 0
        return found

    def _by_source(self, step: int, sums: Sequence[float]) -> dict[str, float]:
        """The mean loss of each source that has rows in the step's batch."""
        rows = self._batches.rows_by_source(step)
        return {name: total / count for name, total, count in zip(self._sources, sums, rows, strict=True) if count}


def _memory(result: StepResult) -> dict[str, Value]:
    if result.memory is None:
        return {}
    peak, reserved, host, available = result.memory
    names = {"device_memory_peak": peak or None, "device_memory_reserved": reserved or None}
    return names | {"host_memory": host, "host_memory_available": available}
