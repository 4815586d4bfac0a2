"""The command `ngpt`."""

import sys

import pytest

from megatron_ngpt import cli
from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.config.mistakes import every_key
from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.training import entry
from tests.launch.conftest import ROOT

RECIPE = """
model: {layers: 2, hidden: 32, heads: 4}
data: {tokenizer: gone.model, train: [{prefix: gone}]}
training: {output: run}
"""


@pytest.fixture
def ngpt(monkeypatch, capsys):
    """Runs `ngpt` with arguments; returns (status, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ngpt", *argv])
        status = cli.main()
        return status, *capsys.readouterr()

    return run


def test_help_is_complete(ngpt):
    status, out, _ = ngpt("--help")
    assert status == 0 and "check" in out
    status, out, _ = ngpt("check", "--help")
    assert status == 0 and "--ranks" in out and "model.scales.alpha.init (number; 0.05)\n        effective value" in out


@pytest.mark.parametrize(("argv", "said"), [
    (["chek"], "ngpt: No such command 'chek'"),
    (["check"], "ngpt check: Missing argument 'RECIPE.yaml'"),
    (["check", "r.yaml", "--ranks", "two"], "ngpt check: Invalid value for '--ranks'"),
    (["check", "r.yaml", "--ranks", "0"], "ranks = 0: must be at least 1"),
    (["check", "r.yaml", "extra"], "extra: one recipe is enough (r.yaml); keys are set with --section.key=value"),
    (["check", "gone.yaml"], "gone.yaml: cannot read the recipe"),
])
def test_wrong_usage_is_one_line_and_2(ngpt, tmp_path, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    status, out, err = ngpt(*argv)
    assert status == 2 and out == "" and err.splitlines()[0].startswith(said), err
    assert "Traceback" not in err


@pytest.mark.parametrize("bare", [[], ["checkpoint"], ["data"]])
def test_without_a_command_help_is_shown_whole(ngpt, bare):
    status, out, err = ngpt(*bare)
    assert status == 0 and err == "" and "Commands:" in out and "..." not in out.partition("Commands:")[2]


def test_version_and_completion(ngpt):
    assert ngpt("--version") == (0, f"ngpt {cli.megatron_ngpt.__version__}\n", "")
    assert "--install-completion" in ngpt("--help")[1]


def test_init_writes_a_recipe_that_lacks_nothing_but_data(ngpt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = ngpt("init")
    (tmp_path / "my.yaml").write_text(out, "utf-8")
    status, _, err = ngpt("check", "my.yaml")
    assert status == 2 and all(line.startswith("data.") and "no such file" in line.lower() for line in err.splitlines()), err
    recipe = load_recipe("my.yaml")
    smallest = {"data": recipe.data.model_dump(), "training": {"output": "runs/first"}}
    assert recipe == Recipe.model_validate(smallest)
    for key in every_key():
        assert ".N." in key or f"{key.split('.')[-1]}:" in out


def test_init_prints_a_shipped_recipe_and_knows_no_other(ngpt):
    assert ngpt("init", "quickstart")[1] == (ROOT / "launch" / "recipes" / "quickstart.yaml").read_text("utf-8")
    status, out, err = ngpt("init", "gone")
    assert status == 2 and out == "" and err.startswith("gone: no recipe that comes with the package; choose from gpt-0.5b, ")


def test_data_is_data_tools(ngpt, tmp_path):
    assert "ngpt data preprocess" in ngpt("data", "preprocess", "--help")[1]
    status, out, err = ngpt("data", "verify", str(tmp_path / "gone"))
    assert status == 2 and out == "" and err.count("\n") == 1
    assert ngpt("data", "preprocess")[2].startswith("ngpt data preprocess: Missing option")


def test_train_is_the_entry_of_pretraining(ngpt, monkeypatch):
    given = []
    monkeypatch.setattr(entry, "main", lambda argv: (given.append(argv), 7)[1])
    assert ngpt("--local_rank=1", "train", "r.yaml", "--model.layers=3", "--training.steps", "9")[0] == 7
    assert given == [["r.yaml", "--model.layers=3", "--training.steps", "9"]]
