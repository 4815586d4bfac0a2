"""The paper's tasks: lm-eval's own prompts and choices, over data of the same shapes that lies on this machine."""

import json
import sys
from pathlib import Path

import lm_eval
import pytest
import yaml

from megatron_ngpt import cli
from megatron_ngpt.inference.tasks import PAPER, Tasks
from tests.inference.test_harness import log_likelihoods, pair_ids

OURS = Path(lm_eval.__file__).parent / "tasks"
FILES = {"arc_easy": "arc/arc_easy", "hellaswag": "hellaswag/hellaswag", "winogrande": "winogrande/default", "wsc273": "wsc273/default",
         "lambada_openai": "lambada/lambada_openai"}  # fmt: skip
ROWS = {  # as the data sets have them
    "arc_easy": [
        {"id": "1", "question": "What does import do?", "choices": {"text": ["loads a module", "ends", "x"], "label": ["A", "B", "C"]},
         "answerKey": "A"},
        {"id": "2", "question": "Which is a number?", "choices": {"text": ["def", "7"], "label": ["1", "2"]}, "answerKey": "2"},
    ],
    "hellaswag": [
        {"ind": 4, "activity_label": "Parsing", "ctx_a": "A parser reads arguments.", "ctx_b": "the parser", "ctx": "x",
         "label": str(right), "endings": ["exits.", "prints [step] help [title] and stops.", "returns a namespace.", "raises."]}
        for right in (2, 0)
    ],
    "winogrande": [
        {"sentence": "The parser called the action as _ was required.", "option1": "the parser", "option2": "the action", "answer": "2"},
        {"sentence": "Ann asked Bob, as _ knew.", "option1": "Ann", "option2": "Bob", "answer": "1"},
    ],
    "wsc273": [
        {"text": "The namespace holds the value because it is large.", "pronoun": "it", "pronoun_loc": 38, "quote": "it is large",
         "quote_loc": 38, "options": ["The namespace", "The value"], "label": label, "source": "x"}
        for label in (0, 1)
    ],
    "lambada_openai": [{"text": "import os and then import sys"}, {"text": "if True: return x"}],
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path):
    """A directory of the five tasks as lm-eval has them, but for where their data is."""
    for name, file in FILES.items():
        source = OURS / f"{file}.yaml"
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        lines = [line for line in source.read_text().splitlines() if not line.startswith(("dataset_path:", "dataset_name:"))]
        splits = [line.split(":")[1].strip() for line in lines if line.startswith(("training_split:", "validation_split:", "test_split:"))]
        files = {split: str(data) for split in splits if split != "null"}
        local = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "cache")}}
        folder = tmp_path / name
        folder.mkdir()
        for code in source.parent.glob("*.py"):
            (folder / code.name).write_text(code.read_text())
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n" + yaml.safe_dump(local))
    return tmp_path


def best(lab, pairs):
    """The place of the likeliest (context, continuation)."""
    scores = [log_likelihoods(lab.module, *pair_ids(lab.tokenizer, *pair))[0] for pair in pairs]
    return scores.index(max(scores))


def by_hand(lab):
    """How many of each task's two documents are right, from their rows."""
    right = dict.fromkeys(ROWS, 0)
    for row in ROWS["arc_easy"]:
        pairs = [(f"Question: {row['question']}\nAnswer:", f" {choice}") for choice in row["choices"]["text"]]
        right["arc_easy"] += best(lab, pairs) == row["choices"]["label"].index(row["answerKey"])
    endings = [" exits.", " prints help. and stops.", " returns a namespace.", " raises."]
    for row in ROWS["hellaswag"]:
        pairs = [("Parsing: A parser reads arguments. The parser", ending) for ending in endings]
        right["hellaswag"] += best(lab, pairs) == int(row["label"])
    for row in ROWS["winogrande"]:
        before, after = row["sentence"].split("_")
        pairs = [(before + row[key], f" {after.strip()}") for key in ("option1", "option2")]
        right["winogrande"] += best(lab, pairs) == int(row["answer"]) - 1
    for row in ROWS["wsc273"]:
        pairs = [(f"The namespace holds the value because {option}", " is large.") for option in ("the namespace", "the value")]
        right["wsc273"] += best(lab, pairs) == row["label"]
    for row in ROWS["lambada_openai"]:
        context, word = row["text"].rsplit(" ", 1)
        right["lambada_openai"] += log_likelihoods(lab.module, *pair_ids(lab.tokenizer, context, f" {word}"))[1]
    return {name: count / 2 for name, count in right.items()}


def test_one_command_runs_them(lab, tasks, own_tasks_alone, monkeypatch, capsys, tmp_path):
    command = ["ngpt", "harness", str(lab.run), "--tasks", "paper", "--include_path", str(tasks), "--output", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", command)
    assert cli.main() == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert {name: found["acc,none"] for name, found in results.items()} == by_hand(lab)


def test_lm_eval_has_them_all():
    """Its own list, which changes with its version."""
    assert Tasks(["paper"], None).names == list(PAPER)
    assert Tasks(["paper", "arc_easy", "piqa"], None).names == [*PAPER, "piqa"]
