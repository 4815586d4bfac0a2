"""The command `ngpt`."""

import sys

import pytest

from megatron_ngpt import cli

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
    ([], "ngpt: Missing command"),
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
