"""What an evaluation of a run in training tells: the same sample and the same results of tasks in every layout."""

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from megatron_ngpt import cli
from megatron_ngpt.monitor.metrics import read_metrics
from megatron_ngpt.training.preflight import preflight
from tests.distributed.ranks import Run, train
from tests.inference.lab import COMMON, QUESTIONS, TASKS, TEXTS

pytestmark = pytest.mark.usefixtures("in_repository")
TIGHT = "--deepspeed=tests/distributed/zero3-tight.json"  # which divides small parameters too
LAYOUTS = {
    "tensor 2 sequence data 2": (4, ["--parallel.tensor=2", "--parallel.sequence=true", "--deepspeed=zero1"]),
    "pipeline 2": (2, ["--parallel.pipeline=2", "--training.recompute=full"]),
    "ZeRO-3": (2, [TIGHT]),
    "context 2 ring": (2, ["--parallel.context=2", "--parallel.context_kind=ring", "--data.document_boundaries=ignore"]),
    "tensor 2 pipeline 2": (4, ["--parallel.tensor=2", "--parallel.pipeline=2"]),
    "ZeRO-3 tensor 2": (4, [TIGHT, "--parallel.tensor=2"]),
    "offload": (2, ["--deepspeed=zero2-offload"]),
}
CHEAP = "pipeline 2", "ZeRO-3"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A directory of tasks and their data."""
    directory = tmp_path_factory.mktemp("tasks")
    lines = {"questions": [{**entry, "written": " x"} for entry in QUESTIONS], "texts": [{"text": text} for text in TEXTS]}
    for name, content in lines.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    for name, task in TASKS.items():
        data = directory / ("texts.jsonl" if name == "tiny_text" else "questions.jsonl")
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{COMMON.format(data=data, cache=directory / 'cache')}{task}")
    return directory


def own_tasks_alone(output) -> None:
    """On a rank: without lm-eval's own 14,000 tasks, which take seconds to find."""
    from lm_eval.tasks import TaskManager

    TaskManager.__init__.__defaults__ = (None, None, False, None)


def divided(output) -> None:
    """On a rank, also: under ZeRO-3 nothing is whole any more when a sample is written; of so small a model DeepSpeed keeps much."""
    from megatron_ngpt.training.evaluation import Evaluation

    own_tasks_alone(output)
    original = Evaluation._sample

    def sample(self):
        for parameter in self._live.module.parameters():
            if hasattr(parameter, "ds_id"):
                parameter.partition()
        return original(self)

    Evaluation._sample = sample


def arguments(corpus, tasks, *more) -> list[str]:
    valid = f"--data.valid=[{{prefix: {corpus}/b, name: held-out}}]"
    return [
        str(corpus / "recipe.yaml"), valid, "--training.steps=4", "--training.eval_every=2", "--training.eval_batches=1",
        f"--training.eval_tasks=[{', '.join(TASKS)}]", f"--training.eval_tasks_path={tasks}", *more,
    ]  # fmt: skip


def told(output) -> list[tuple]:
    """(step, sample, results of tasks) of each evaluation."""
    events = EventAccumulator(str(output / "training"), tensor_size_guidance={"text": 0}).Reload().Tensors("sample")
    samples = [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]
    results = read_metrics(output, "tasks")
    assert [step for step, _ in samples] == [line["step"] for line in results]
    return [(line["step"], sample, line["tasks"]) for (_, sample), line in zip(samples, results, strict=True)]


@pytest.fixture(scope="module")
def alone(corpus, tasks, tmp_path_factory):
    """One rank's run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        output = tmp_path_factory.mktemp("alone") / "run"
        train(1, arguments(corpus, tasks), output, before=own_tasks_alone)
    return told(output)


def test_one_rank_tells_all_of_it(alone):
    assert [step for step, _, _ in alone] == [2, 4]
    for _, sample, results in alone:
        prompt, written = sample.split("▮")
        assert prompt and written
        assert set(results) == {"tiny_choice/acc", "tiny_text/bits_per_byte", "tiny_text/word_perplexity", "tiny_written/exact_match"}
    assert alone[0][1] != alone[1][1] and alone[0][2] != alone[1][2]  # the model has moved


@pytest.mark.parametrize("layout", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.heavy) for name in LAYOUTS])
def test_every_layout_tells_the_same(corpus, tasks, alone, tmp_path, layout):
    ranks, options = LAYOUTS[layout]
    train(ranks, arguments(corpus, tasks, *options), tmp_path / "run", before=divided)
    found = told(tmp_path / "run")
    assert [(step, sample) for step, sample, _ in found] == [(step, sample) for step, sample, _ in alone]
    for (_, _, results), (_, _, expected) in zip(found, alone, strict=True):
        assert results == pytest.approx(expected, rel=1e-5)


@pytest.mark.heavy
def test_bf16_tells_it_too(corpus, tasks, tmp_path):
    train(2, arguments(corpus, tasks, "--deepspeed=bf16-zero2"), tmp_path / "run", before=own_tasks_alone)
    assert [step for step, _, _ in told(tmp_path / "run")] == [2, 4]


def test_an_unknown_task_is_refused_in_a_line_before_the_start(corpus, tasks, tmp_path):
    run = Run(2, arguments(corpus, tasks, "--training.eval_tasks=[tiny_choice, tiny_choise]"), tmp_path / "run", before=own_tasks_alone)
    assert run.wait() == [2, 2], run.story()
    said = "training.eval_tasks = tiny_choise: lm-eval has no such task; `lm-eval ls tasks` lists its own, training.eval_tasks_path adds"
    assert run.console().splitlines()[-1].startswith(said) and "Traceback" not in run.console()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_is_refused_before_lm_eval_is_asked(corpus, tasks, monkeypatch):
    from megatron_ngpt.errors import ConfigError
    from megatron_ngpt.training import preflight as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    options = ["--training.output=o", "--training.eval_every=0", "--training.eval_tasks_path=gone", "--data.valid=[]"]
    with pytest.raises(ConfigError) as error:
        preflight(str(corpus / "recipe.yaml"), [*arguments(corpus, tasks)[1:], *options], 1)
    lines = sorted(error.value.problems)
    assert len(lines) == 3 and "lm-eval is not installed; pip install -e '.[eval]'" in lines[0]
    assert "training.eval_every is 0" in lines[1] and lines[2].startswith("training.eval_tasks_path = gone: no such directory")


JUDGE = """
import os


def judge(doc, results):
    [(found, _), *_] = results
    if found != -1 and os.environ["RANK"] in {failing} and not os.path.exists("{flag}" + os.environ["RANK"]):
        open("{flag}" + os.environ["RANK"], "w").close()
        raise KeyError("answer of rank " + os.environ["RANK"])
    return {{"acc": 1.0}}
"""


def judged_by(directory: Path, code: str, questions: list[dict] = QUESTIONS) -> list[str]:
    """The options with which a run has one task, of a multiple choice, whose answers this code judges."""
    directory.mkdir(exist_ok=True)
    (directory / "questions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in questions))
    (directory / "judged.py").write_text(code)
    head = COMMON.format(data=directory / "questions.jsonl", cache=directory / "cache")
    body = TASKS["tiny_choice"] + "process_results: !function judged.judge\n"
    (directory / "tiny_judged.yaml").write_text(f"task: tiny_judged\n{head}{body}")
    return ["--training.eval_tasks=[tiny_judged]", f"--training.eval_tasks_path={directory}"]


@pytest.mark.parametrize(("layout", "failing"), [
    ("data 2", [1]),  # which has documents of its own
    pytest.param("tensor 2 sequence data 2", [2, 3], marks=pytest.mark.heavy),
    pytest.param("ZeRO-3", [0, 1], marks=pytest.mark.heavy),
])
def test_a_task_that_fails_on_some_ranks_is_a_warning_on_all(corpus, tasks, tmp_path, layout, failing):
    """Told once; the evaluation after it has results again."""
    ranks, options = {"data 2": (2, [])}.get(layout) or LAYOUTS[layout]
    words = set(map(str, failing))
    given = judged_by(tmp_path / "tasks", JUDGE.format(failing=words, flag=tmp_path / "failed"))
    train(ranks, arguments(corpus, tasks, *given, *options), tmp_path / "run", before=own_tasks_alone)
    assert [line["step"] for line in read_metrics(tmp_path / "run", "tasks")] == [4]
    assert [line["step"] for line in read_metrics(tmp_path / "run", "valid_loss")] == [2, 4]
    logs = [(tmp_path / "run" / "logs" / f"rank-{rank:05d}.log").read_text() for rank in range(ranks)]
    assert [rank for rank, log in enumerate(logs) if "Traceback" in log] == failing
    said = f"warning: step 2: tasks: KeyError: 'answer of rank {failing[0]}'; no results of training.eval_tasks, the run goes on"
    assert logs[0].count(said) == 1 and logs[0].count("warning: step") == 1


def test_a_task_that_can_only_fail_is_refused_before_the_start(corpus, tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__.__defaults__", (None, None, False, None))
    given = judged_by(tmp_path / "tasks", "def judge(doc, results):\n    return {'acc': doc['anwser']}\n")
    monkeypatch.setattr(sys, "argv", ["ngpt", "check", *arguments(corpus, tasks, *given, f"--training.output={tmp_path}/run")])
    said = "training.eval_tasks = tiny_judged: fails on answers that are made up: KeyError: 'anwser'; mend it, or leave it out\n"
    assert cli.main() == 2 and capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize(("limit", "seen"), [("null", 8), (2, 2)])
def test_a_few_documents_of_a_task_are_rehearsed(corpus, tasks, tmp_path, monkeypatch, limit, seen):
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__.__defaults__", (None, None, False, None))
    told = tmp_path / "judged"
    code = f"def judge(doc, results):\n    open({str(told)!r}, 'a').write('.')\n    return {{'acc': 1.0}}\n"
    given = judged_by(tmp_path / "tasks", code, QUESTIONS * 8)
    given += [f"--training.eval_tasks_limit={limit}", f"--training.output={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["ngpt", "check", *arguments(corpus, tasks, *given)])
    assert cli.main() == 0 and told.read_text() == "." * seen


def test_ngpt_check_asks_lm_eval_too(corpus, tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__.__defaults__", (None, None, False, None))
    given = arguments(corpus, tasks, "--training.eval_tasks=[tiny_choise]", f"--training.output={tmp_path}/run")
    monkeypatch.setattr(sys, "argv", ["ngpt", "check", *given])
    assert cli.main() == 2 and "training.eval_tasks = tiny_choise: lm-eval has no such task" in capsys.readouterr().err
