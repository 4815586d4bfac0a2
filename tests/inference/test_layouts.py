"""A model over tensor, pipeline and data ranks computes and writes what it does in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ngpt import cli
from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.config.recipe import Model, RopeScaling
from megatron_ngpt.errors import ConfigError, DataError
from megatron_ngpt.inference.evaluate import evaluate
from megatron_ngpt.inference.generate import Request, continue_prompts
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.inference.ranks import check_layout
from megatron_ngpt.inference.sampling import Sampling
from megatron_ngpt.parallel.grid import Axis, RankGrid, make_grid
from tests.checkpoint.trained import make_model, save_run
from tests.data.small_data import write_dataset
from tests.distributed.corpus import REPOSITORY
from tests.on_ranks import on_ranks

LAYOUTS = {"tensor 2": (2, 2, 1), "pipeline 2": (2, 1, 2), "data 2": (2, 1, 1), "tensor 2 data 2": (4, 2, 1), "2 2 2": (8, 2, 2)}
PROMPTS = ["import os", "def main(argv):\n    return", "", "x", "parser.add_argument("]
SCALED = RopeScaling(kind="yarn", factor=6.0)
GREEDY, DRAWN = Request(12, Sampling(0.0), []), Request(12, Sampling(1.0, 0.9, seed=2), ["e"], batch=2)


@pytest.fixture(scope="session", params=["ngpt", "gpt"])
def runs(request, world, tmp_path_factory):
    """A run and its export, with a vocabulary that 2 does not divide; a dataset; documents kept apart."""
    directory = tmp_path_factory.mktemp(request.param)
    module = make_model(request.param, vocabulary=world.tokenizer.size + 3, layers=3)
    save_run(directory / "run", module, world.tokenizer.path, boundaries="mask")
    export(directory / "run", directory / "out")
    return directory, world.data


def work(tensor: int, pipeline: int, model: Path, data: str) -> tuple:
    """What a rank finds: the evaluation, and continuations."""
    grid = make_grid(tensor=tensor, pipeline=pipeline)
    found = evaluate(load_model(model, mask_documents=None, grid=grid), data)
    return found, *texts(load_model(model, grid=grid))


def texts(loaded) -> list[list[str]]:
    found = [[], []]
    for request, into in zip((GREEDY, DRAWN), found, strict=True):
        continue_prompts(loaded, PROMPTS, request, lambda prompt, text, into=into: into.append((prompt, text)))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_model(runs, layout):
    directory, data = runs
    ranks, tensor, pipeline = LAYOUTS[layout]
    form = "out" if layout in ("pipeline 2", "tensor 2 data 2") else "run"
    alone = evaluate(load_model(directory / form, mask_documents=None), data)
    written = texts(load_model(directory / form))
    assert [prompt for prompt, _ in written[0]] == PROMPTS and len({text for _, text in written[0]}) == len(PROMPTS)
    for found, *their_texts in on_ranks(ranks, work, tensor, pipeline, directory / form, data):
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert [found["tokens"], found["context"]] == [alone["tokens"], alone["context"]]
        assert their_texts == written


def evaluated(context: int, tensor: int, model: Path, data: str, length: int) -> dict | str:
    """What a rank finds with windows over context ranks; a refusal as its text."""
    try:
        loaded = load_model(model, mask_documents=None, grid=make_grid(tensor=tensor, context=context), scaling=SCALED)
        return evaluate(loaded, data, length) | {"kind": loaded.module.blueprint.context_kind}
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize(("ranks", "context", "tensor", "kind"), [(2, 2, 1, "ulysses"), (4, 2, 2, "ulysses"), (3, 3, 1, "ring")])
def test_windows_over_context_ranks_have_the_loss_of_one(runs, ranks, context, tensor, kind):
    """Documents kept apart; longer than the model's own context, with scaled positions; a ring where the heads do not divide."""
    directory, data = runs
    plain, alone = (evaluate(load_model(directory / "run", mask_documents=None, scaling=scaling), data, 96) for scaling in (None, SCALED))
    assert abs(alone["loss"] / plain["loss"] - 1) > 1e-5 or directory.name.startswith("gpt")  # which hardly attends without training
    for found in on_ranks(ranks, evaluated, context, tensor, directory / "run", data, 96):
        assert found["kind"] == kind and found["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert found["tokens"] == alone["tokens"]


def test_a_window_that_does_not_divide_over_context_ranks_is_refused(runs):
    directory, data = runs
    said = "--context = 97: must be a multiple of 2 for --context_ranks = 2; choose 98"
    assert on_ranks(2, evaluated, 2, 1, directory / "run", data, 97) == [said, said]


def test_hidden_states_in_bfloat16_pass_between_stages(world, tmp_path):
    """Stages change nothing at all: even rounded, what they hand on is what one process goes on with."""
    save_run(tmp_path / "run", make_model(vocabulary=world.tokenizer.size, residual_dtype="bfloat16"), world.tokenizer.path)
    alone = evaluate(load_model(tmp_path / "run"), world.data), *texts(load_model(tmp_path / "run"))
    assert on_ranks(2, work, 1, 2, tmp_path / "run", world.data) == [alone, alone]


def refused(tensor: int, pipeline: int, model: Path, data: str) -> str | None:
    """What a rank is told."""
    try:
        work(tensor, pipeline, model, data)
    except ConfigError as error:
        return str(error)
    return None


def test_an_id_that_one_rank_alone_reads_is_told_by_all(world, tmp_path):
    data = write_dataset(tmp_path / "data", [[1] * 200 + [60_000] + [1] * 200], dtype="u2")
    with pytest.raises(DataError):
        evaluate(load_model(world.run), data)
    told = on_ranks(4, refused, 1, 2, world.run, data)
    assert len(set(told)) == 1 and "token 60000" in told[0]


@pytest.mark.parametrize(("sizes", "said"), [
    ((3, 1), "--tensor = 3: must divide the model's heads = 8, kv_heads = 4, ffn = 36; valid are 1, 2, 4"),
    ((1, 3), "--pipeline = 3: more stages than the model has layers; valid are 1 to 2"),
])
def test_a_layout_that_does_not_fit_is_refused(sizes, said):
    tensor, pipeline = (Axis(0, size) for size in sizes)
    with pytest.raises(ConfigError) as error:
        check_layout(Model(layers=2, hidden=64, heads=8, kv_heads=4, ffn=36), RankGrid(tensor=tensor, pipeline=pipeline))
    assert str(error.value) == said


def test_under_torchrun_rank_0_alone_prints(world):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "megatron_ngpt", "generate", str(world.run)]
    options = ["--prompt", "import os", "--max_tokens", "12", "--temperature", "0", "--tensor", "2"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=250, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout == texts(load_model(world.run))[0][0][1] + "\n"
    assert run.stderr.count("tokens/s\n") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_alone_tells_a_mistake(rank, monkeypatch, capsys):
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(cli, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(sys, "argv", ["ngpt", "generate", "run", "--prompt", "x", "--tensor", "2", "--pipeline", "2"])
    assert cli.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == (rank == 0)
    assert rank or err.startswith("--tensor = 2, --pipeline = 2: their product 4 must divide the number of ranks, 2; start as many with ")
