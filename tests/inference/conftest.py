"""A tokenizer, a dataset made with it, and a model of its vocabulary in each form that MODEL may have."""

import hashlib
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.inference.sampling import choose
from tests.checkpoint.trained import make_model, save_run
from tests.data.small_data import make_tokenizer, write_dataset
from tests.inference.lab import make_lab


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Paths: tokenizer, data (a prefix), run, checkpoint, exported; and the module they hold."""
    directory = tmp_path_factory.mktemp("inference")
    lines = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text("utf-8").split("\n")[:600]
    tokenizer = Tokenizer(make_tokenizer(directory / "small.model", lines))
    documents = [[*tokenizer.encode("\n".join(lines[i : i + 4])).tolist(), tokenizer.eos_id] for i in range(0, 80, 4)]
    sha256 = hashlib.sha256((directory / "small.model").read_bytes()).hexdigest()
    data = write_dataset(directory / "data", documents, tokenizer_sha256=sha256)
    module = make_model(vocabulary=tokenizer.size)
    checkpoint = save_run(directory / "run", module, tokenizer.path)
    export(directory / "run", directory / "exported")
    return SimpleNamespace(
        directory=directory, tokenizer=tokenizer, documents=documents, data=data, module=module,
        run=directory / "run", checkpoint=checkpoint, exported=directory / "exported",
    )


@pytest.fixture(autouse=True)
def choices_that_rounding_can_not_turn(monkeypatch):
    """Texts are compared token by token, so no choice of this process may hang on rounding: ten times as much of it changes none.

    Logits here differ by less than 1e-6 between processors.
    """
    generator = torch.Generator().manual_seed(0)

    def checked(logits_BV, sampling, generators):
        states = [one.get_state() for one in generators]
        chosen = choose(logits_BV, sampling, generators)
        for _ in range(3):
            again = [torch.Generator().set_state(state) for state in states]
            noise_BV = 1e-5 * torch.randn(logits_BV.shape, generator=generator)
            assert choose(logits_BV + noise_BV, sampling, again).equal(chosen), "rounding decides here: take another seed"
        return chosen

    monkeypatch.setattr("megatron_ngpt.inference.generate.choose", checked)


@pytest.fixture(scope="module", params=["ngpt", "gpt"])
def lab(request, world, tmp_path_factory):
    """A run of a model with a longer context, and a directory of tasks and their data."""
    return make_lab(request.param, world, tmp_path_factory.mktemp)


@pytest.fixture
def own_tasks_alone(monkeypatch):
    """Without lm-eval's own 14,000 tasks, which take seconds to find."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__.__defaults__", (None, None, False, None))
