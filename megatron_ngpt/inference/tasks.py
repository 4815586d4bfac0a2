"""`ngpt harness`: the tasks of lm-eval on a model, by their names; also of a run's own evaluations."""

import json
import logging
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from megatron_ngpt.checkpoint.files import write_text
from megatron_ngpt.errors import ConfigError, DataError, TaskError
from megatron_ngpt.inference.harness import HarnessModel, all_well  # first: it says how lm-eval is installed
from megatron_ngpt.inference.harness_options import check_tasks
from megatron_ngpt.inference.load import LoadedModel, load_model
from megatron_ngpt.inference.ranks import joined
from megatron_ngpt.inference.rehearsal import rehearse
from megatron_ngpt.parallel.together import on_first_rank

from lm_eval import simple_evaluate  # isort: skip
from lm_eval.tasks import TaskManager  # isort: skip
from lm_eval.utils import handle_non_serializable, make_table  # isort: skip

log = logging.getLogger(__name__)
PAPER = ("arc_easy", "hellaswag", "winogrande", "wsc273", "lambada_openai")  # by which nGPT was judged beside GPT


class Tasks(TaskManager):
    """lm-eval's tasks of these names, or patterns such as `mmlu_*`, found now and loaded once; `paper`: those of `PAPER`.

    Those that ask for what is not done here are refused as soon as they are loaded, before the model works.

    Args:
        include_path: a directory of a user's own task files.
        key, path_key: what gave the names and the directory, for messages.

    Raises:
        ConfigError: lm-eval has no such task.
    """

    def __init__(self, names: list[str], include_path: Path | None, key: str = "--tasks", path_key: str = "--include_path"):
        super().__init__(include_path=str(include_path) if include_path else None)
        self._given, self._key, self._path_key, self._loaded = ", ".join(names), key, path_key, None
        self.names = self._find(names)

    def load(self, *args, **kwargs):
        """As lm-eval's, of the tasks of this object. Raises ConfigError for each task that asks too much."""
        if self._loaded is None:
            try:
                loaded = super().load(self.names)
            except OSError as error:
                told = f"{self._key} {self._given}: a task's data could not be read: {str(error).splitlines()[0]}"
                raise DataError(told) from None
            check_tasks(loaded["tasks"], self._key)
            self._loaded = loaded
        return self._loaded

    def evaluate(self, loaded: LoadedModel, limit: int | None, batch: int, errors: bool = True) -> dict | None:
        """lm-eval's results on rank 0, None elsewhere (collective); of the first `limit` documents of each task, `batch` requests at once.
        Standard errors, where `errors`, take thousands of repetitions.

        Data ranks have documents of their own, so a task may fail on one of them alone. The others learn it where they would wait for that
        one next. What fails within the model is raised as it is, and on no other rank: nobody knows where the others are.

        Raises:
            TaskError: on every rank; a task's code failed on one.
        """
        self.load()
        more = {} if errors else {"bootstrap_iters": 0}
        model, results, failed = HarnessModel(loaded, batch), None, None
        try:
            results = simple_evaluate(model, tasks=self.names, task_manager=self, limit=limit, batch_size=batch, log_samples=False, **more)
        except TaskError:
            raise
        except Exception as error:
            if model.at_work:
                raise
            log.exception("a task failed")
            failed = TaskError(f"{type(error).__name__}: {' '.join(str(error).split())}")
        all_well(failed)
        return results

    def rehearse(self, limit: int | None) -> None:
        """Load the tasks, and let rank 0 try them without a model (collective). Raises ConfigError for those that fail."""
        found = self.load()["tasks"]
        on_first_rank(lambda: rehearse(found, limit, self._key), self._key)

    def _find(self, names: list[str]) -> list[str]:
        if not names:
            raise ConfigError(f"{self._key}: names no task; give some, such as {self._key} hellaswag,arc_easy, or {self._key} paper")
        if not self.match_tasks(["paper"]):  # one of the user's own would win
            names = [task for name in names for task in (PAPER if name == "paper" else (name,))]
        found = {name: self.match_tasks([name]) for name in names}
        unknown = [name for name, tasks in found.items() if not tasks]
        if unknown:
            said = f"lm-eval has no such task; `lm-eval ls tasks` lists its own, {self._path_key} adds yours"
            raise ConfigError(*(f"{self._key} {name}: {said}" for name in unknown))
        return list(dict.fromkeys(task for tasks in found.values() for task in tasks))


def numbers(results: dict) -> dict[str, float]:
    """The results as numbers: `hellaswag/acc_norm`, without standard errors."""
    found = {}
    for task, values in results["results"].items():
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if isinstance(value, (int, float)) and metric != "sample_len" and not metric.endswith("_stderr"):
                found[f"{task}/{metric}" if kind in ("", "none") else f"{task}/{metric}_{kind}"] = float(value)
    return found


def run(
    model: Path, tasks: list[str], include_path: Path | None, limit: int | None, batch: int, output: Path | None,
    tensor: int, pipeline: int,
) -> None:
    """The command: rank 0 prints lm-eval's table of results, and writes them to `output`.

    Raises:
        ConfigError: no such task, or one whose code fails without a model already.
        TaskError: one whose code fails on what the model answers.
        DataError: a task's data is neither on this machine nor within reach.
    """
    if include_path and not include_path.is_dir():
        raise ConfigError(f"--include_path {include_path}: no such directory; give the one that holds your tasks' YAML files")
    _check_output(output)
    with joined(tensor, pipeline) as grid, redirect_stdout(sys.stderr):  # data sets tell what they do
        found = Tasks([name for word in tasks for name in word.split(",") if name], include_path)
        found.rehearse(limit)
        results = found.evaluate(load_model(model, grid=grid), limit, batch)
    if not grid.world.first:
        return
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if output:
        write_text(output, json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n")


def _check_output(output: Path | None) -> None:
    """Refuse a place for the results that they can't be written to, before the work is done."""
    if output is None:
        return
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a directory; give a file in it, such as {output / 'results.json'}")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: no directory {output.parent}; make it, or choose another")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot write in {output.parent}: {error.strerror}; choose another") from None
