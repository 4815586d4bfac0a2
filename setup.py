"""Installs the packages `megatron_ngpt` and `data_tools` and the command `ngpt`."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = {"ds_configs": "*.json", "launch/recipes": "*.yaml"}  # megatron_ngpt/config/shipped.py finds them


class BuildPy(build_py):
    """Also puts recipes and DeepSpeed's JSON, which lie outside the package in a checkout, into a wheel's copy of it."""

    def run(self):
        """As setuptools does; an editable install finds them where they are."""
        super().run()
        if self.editable_mode:
            return
        for folder, pattern in SHIPPED.items():
            target = Path(self.build_lib) / "megatron_ngpt" / Path(folder).name
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(folder).glob(pattern)):
                shutil.copyfile(file, target / file.name)


setup(
    name="megatron_ngpt",
    version="0.1.0",
    description="Distributed pretraining of nGPT, the normalized Transformer",
    long_description=Path("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Paper": "https://arxiv.org/abs/2410.01131"},
    cmdclass={"build_py": BuildPy},
    packages=find_packages(include=["megatron_ngpt", "megatron_ngpt.*", "data_tools", "data_tools.*"]),
    package_data={"megatron_ngpt.monitor": ["*.js"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.13,<2.14",  # the caps: nothing newer was tried, and the map of shards reads DeepSpeed's private parts
        "deepspeed>=0.19.8,<0.19.9",
        "numpy",
        "psutil",
        "pydantic>=2",
        "PyYAML",
        "typer>=0.29",
        "rich",
        "sentencepiece",
        "protobuf",
        "tokenizers",
        "tensorboard",
        "safetensors",
        "zstandard",
        "pyarrow",
    ],
    extras_require={
        "test": ["pytest", "pytest-timeout", "hypothesis", "ruff", "matplotlib", "megatron-core==0.16.1", "lm-eval", "wandb", "selenium"],
        "study": ["scipy", "matplotlib"],
        "eval": ["lm-eval"],
        "hf": ["transformers"],
        "wandb": ["wandb"],
    },
    entry_points={"console_scripts": ["ngpt=megatron_ngpt.cli:run"]},
)
