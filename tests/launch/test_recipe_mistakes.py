"""Mistakes in recipes, through both doors: exit status 2, one line, and neither torch nor DeepSpeed imported.

One process goes through all of them, as a user's `ngpt check` and `launch/pretrain.py` would, and reports what it saw.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = """
import contextlib, io, json, os, sys
from megatron_ngpt import cli
from megatron_ngpt.training import entry

def through(door, argv, ranks):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if door == "check":
            sys.argv = ["ngpt", "check", *argv, "--ranks", str(ranks)]
            status = cli.main()
        else:
            os.environ.update(RANK="0", WORLD_SIZE=str(ranks))
            status = entry.main(["--local_rank=0", *argv])
    return [status, out.getvalue(), err.getvalue()]

seen = {}
for name, (argv, ranks) in json.load(sys.stdin).items():
    seen[name] = {"check": through("check", argv, ranks)}
    passed = seen[name]["check"][0] == 0                    # then pretraining would start in earnest
    seen[name]["pretrain"] = seen[name]["check"] if passed else through("pretrain", argv, ranks)
heavy = sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "deepspeed", "transformers"))
json.dump({"seen": seen, "heavy": heavy}, sys.stdout)
"""
# name: (overrides, words of the line); on one rank, or on as many as RANKS says
MISTAKES = {
    "unknown key": ("--model.hiden=64", ["model.hiden = 64", "did you mean model.hidden?"]),
    "unknown section": ("--optimiser.lr=1", ["optimiser", "did you mean optimizer?"]),
    "wrong type": ("--model.layers=two", ['model.layers = "two"', "whole number"]),
    "out of range": ("--training.micro_batch=0", ["training.micro_batch = 0", "greater than 0"]),
    "unknown choice": ("--schedule.kind=linear", ['schedule.kind = "linear"', "'cosine', 'wsd' or 'constant'"]),
    "no option": ("--model.layers", ["--model.layers", "write --model.layers=VALUE"]),
    "no equals sign": ("--training.steps 10", ["--training.steps 10: write --training.steps=10"]),
    "no section": ("--lr 1e-3", ["--lr 1e-3: did you mean --optimizer.lr=1e-3?"]),
    "no section, misspelt": ("--lr=1e-3", ["lr = 0.001", "did you mean optimizer.lr?"]),
    "a dash for a line": ("--optimizer.weight-decay=0.1", ["write --optimizer.weight_decay=0.1"]),
    "a word too many": ("extra", ["extra: one recipe is enough"]),
    "text that is no choice": ("--schedule.kind=cosine #1", ['schedule.kind = "cosine #1"', "choose"]),
    "empty text": ("--checkpoint.initial=", ['checkpoint.initial = ""', "must not be empty"]),
    "heads": ("--model.heads=3", ["model.heads = 3", "must divide model.hidden = 32", "choose 2 or 4"]),
    "ranks": ("--parallel.tensor=2", ["parallel.tensor = 2", "number of ranks, 1"]),
    "tensor": ("--parallel.tensor=8", ["parallel.tensor = 8", "must divide model.heads = 4", "choose 4"]),
    "layers": ("--parallel.pipeline=3", ["parallel.pipeline = 3", "model.layers = 2", "choose 1 to 2"]),
    "batch": ("--training.global_batch=7", ["training.global_batch = 7", "choose 6 or 8"]),
    "schedule": ("--schedule.warmup_steps=9", ["schedule.warmup_steps = 9", "choose 0 to 4"]),
    "tokenizer missing": ("--data.tokenizer=none.model", ["data.tokenizer", "none.model", "No such file"]),
    "tokenizer of another dataset": (
        "--data.tokenizer={corpus}/other.model --data.valid=[]", ["data.tokenizer", "is not the tokenizer that made"]),
    "tokenizer that is none": ("--data.tokenizer={recipe}", ["data.tokenizer", "is not a SentencePiece model"]),
    "vocabulary overflow": (
        "--data.valid=[] --data.train=[{{prefix: {corpus}/large}}]", ["model.vocab", "data.train.0.prefix", "30000"]),
    "dataset missing": ("--data.train.0.prefix=nowhere", ["data.train.0.prefix", "nowhere", "no such file"]),
    "split overlaps": ("--data.valid.0.split=null", ["data.valid.0.split", "shares documents"]),
    "output under a file": ("--training.output={recipe}/run", ["training.output", "is a file"]),
    "unwritable output": ("--training.output=/proc/run", ["training.output = /proc/run", "cannot write in /proc"]),
    "never, with checkpoints": ("--checkpoint.resume=never", ["checkpoint.resume = never", "step-00000003", "resume: auto"]),
    "resume path missing": ("--checkpoint.resume=gone", ["checkpoint.resume = gone", "no such directory"]),
    "initial missing": ("--checkpoint.initial=gone", ["checkpoint.initial = gone", "ngpt export"]),
    "deepspeed file missing": ("--deepspeed=ds_configs/zero9.json", ["deepspeed = ds_configs/zero9.json", "zero3.json"]),
    "deepspeed owns too much": ("--deepspeed={own}", ["train_batch_size", "training.global_batch"]),
    "bf16 without masters": ("--deepspeed={bf16}", ["bf16", "choose bf16-zero1.json"]),
    "evaluation of nothing": ("--training.eval_every=2 --data.valid=[]", ["training.eval_every = 2", "data.valid is empty"]),
}


RANKS = {"tensor": 8, "layers": 3}


def environment() -> dict[str, str]:
    """Without a launcher's variables."""
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    return {name: value for name, value in os.environ.items() if name not in gone} | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def seen(good_recipe, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "own.json").write_text('{"train_batch_size": 8}')
    (folder / "bf16.json").write_text('{"bf16": {"enabled": true}}')
    (folder / "run" / "checkpoints" / "step-00000003").mkdir(parents=True)
    names = {"corpus": corpus, "recipe": good_recipe, "own": folder / "own.json", "bf16": folder / "bf16.json"}
    runs = {}
    for name, (overrides, _) in MISTAKES.items():
        extra = [f"--training.output={folder / 'run'}"] if name == "never, with checkpoints" else []
        runs[name] = [str(good_recipe), *_split(overrides.format(**names)), *extra], RANKS.get(name, 1)
    several = [str(good_recipe), "--model.heads=3", "--model.hiden=1", "--data.train.0.prefix=nowhere",
               "--training.global_batch=7", f"--training.output={good_recipe}/x", f"--deepspeed={folder / 'own.json'}"]
    runs |= {"several": (several, 1), "no recipe": ([], 1), "missing file": (["gone.yaml"], 1)}
    done = subprocess.run([sys.executable, "-c", DRIVER], input=json.dumps(runs), capture_output=True, text=True, cwd=ROOT,
                          env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _split(overrides: str) -> list[str]:
    """Options apart, and from an option the word that follows it without an equals sign."""
    options = re.split(r" (?=--)", overrides)
    return [word for option in options for word in ([option] if "=" in option else option.split(" "))]


@pytest.mark.parametrize("door", ["check", "pretrain"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_leaves_with_2_and_one_helpful_line(seen, name, door):
    status, out, err = seen["seen"][name][door]
    assert status == 2 and out == ""
    assert err.count("\n") == 1 and "Traceback" not in err, err
    for words in MISTAKES[name][1]:
        assert words in err


@pytest.mark.parametrize("door", ["check", "pretrain"])
def test_several_mistakes_are_told_at_once(seen, door):
    status, _, err = seen["seen"]["several"][door]
    lines = err.splitlines()
    assert status == 2 and len(lines) == 6
    for words in ("model.heads = 3", "model.hiden", "nowhere", "global_batch = 7", "training.output", "train_batch_size"):
        assert sum(words in line for line in lines) == 1, (words, lines)


@pytest.mark.parametrize("door", ["check", "pretrain"])
@pytest.mark.parametrize(("name", "said"), [("no recipe", "RECIPE.yaml"), ("missing file", "gone.yaml")])
def test_wrong_usage_is_one_line_too(seen, name, said, door):
    status, out, err = seen["seen"][name][door]
    assert status == 2 and out == "" and err.count("\n") == 1 and said in err


def test_neither_torch_nor_deepspeed_was_imported(seen):
    assert seen["heavy"] == []


def test_the_script_itself_from_another_directory(good_recipe, tmp_path):
    script = ROOT / "launch" / "pretrain.py"
    bare = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    command = [sys.executable, script, good_recipe, "--model.heads=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=bare, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "model.heads = 3: must divide model.hidden = 32; choose 2 or 4\n"


def test_under_deepspeeds_launcher_the_line_appears_once_and_the_status_is_2(good_recipe):
    launcher = Path(sys.executable).with_name("deepspeed")
    done = subprocess.run(
        [sys.executable, launcher, "--num_gpus", "2", "launch/pretrain.py", good_recipe, "--model.heads=3"],
        capture_output=True, text=True, cwd=ROOT, env=environment() | {"DS_ACCELERATOR": "cpu"}, timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.count("model.heads = 3: must divide model.hidden = 32; choose 2 or 4\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_good_recipe_is_one_line_of_layout_parameters_and_memory(good_recipe):
    code = "import sys; from megatron_ngpt.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", good_recipe, "--ranks", "4", "--parallel.tensor=2", "--training.output=run"],
        capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=60,
    )
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1
    assert "4 ranks = tensor 2 × pipeline 1 × data 2, ZeRO-1 fp32, gradient accumulation 2; ngpt, " in done.stdout
    embeddings, block = 2 * 200 * 32 + 200, 4 * 32 * 32 + 3 * 32 * 128 + 2 * 32 + 32 + 2 * 128
    assert f"{embeddings + 2 * block:,} parameters" in done.stdout and "a rank" in done.stdout
    assert not (ROOT / "run").exists()
