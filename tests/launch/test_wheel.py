"""A wheel, built and unpacked as an installer does, checks and trains far from any checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.launch.conftest import RECIPE, ROOT

SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "megatron_ngpt", "data_tools", "launch", "ds_configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that `pip wheel .` builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    code = "import setuptools.build_meta as build; print(build.build_wheel('dist'))"
    (folder / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs `python -m megatron_ngpt` of the unpacked wheel, in a directory of its own."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    zipfile.ZipFile(wheel).extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "megatron_ngpt", *arguments]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=200)

    run.site, run.elsewhere = site, elsewhere
    return run


def test_it_says_what_it_is_and_has_its_licence(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        meta = Parser().parsestr(content.read(next(name for name in names if name.endswith("METADATA"))).decode())
    assert meta["Name"] == "megatron_ngpt" and meta["License-Expression"] == "Apache-2.0" and "Pretrain **nGPT**" in meta.get_payload()
    assert meta["Project-URL"] == "Paper, https://arxiv.org/abs/2410.01131"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_recipe_and_choice_comes_along(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("ds_configs", "*.json"), ("launch/recipes", "*.yaml"), ("megatron_ngpt/monitor", "*.js")):
        files = {f"megatron_ngpt/{Path(folder).name}/{path.name}" for path in (ROOT / folder).glob(pattern)}
        assert files and files <= names


def test_it_trains_without_a_checkout(installed, corpus):
    """By a recipe that leaves DeepSpeed's choice to its default, and by the commands of an installed package."""
    recipe = RECIPE.format(corpus=corpus, run="run", root="")
    (installed.elsewhere / "my.yaml").write_text("\n".join(line for line in recipe.splitlines() if not line.startswith("deepspeed")))
    done = installed("train", "my.yaml", "--training.steps=1", "--deepspeed=zero0", "--model.layers=1")
    assert done.returncode == 0 and "trained to step 1" in done.stdout, done.stdout + done.stderr
    done = installed("check", "my.yaml", "--training.output=new", "--ranks", "2")
    assert done.returncode == 0 and "ZeRO-1 fp32" in done.stdout
    done = installed("check", "ngpt-0.5b", "--ranks", "8")
    assert done.returncode == 2 and "data.tokenizer" in done.stderr and "deepspeed" not in done.stderr
    done = installed("data", "inspect", str(corpus / "text"))
    assert done.returncode == 0 and "documents" in done.stdout


def test_a_mistake_of_train_is_one_line_and_2(installed):
    done = installed("train", "--local_rank=0", "gone.yaml")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("gone.yaml: cannot read the recipe: No such file")
