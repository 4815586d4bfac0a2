"""Installs the packages `megatron_ngpt` and `data_tools` and the command `ngpt`."""

from setuptools import find_packages, setup

setup(
    name="megatron_ngpt",
    version="0.1.0",
    description="Distributed pretraining of nGPT, the normalized Transformer",
    packages=find_packages(include=["megatron_ngpt", "megatron_ngpt.*", "data_tools", "data_tools.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.13",
        "deepspeed>=0.19.8",
        "numpy",
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
        "test": ["pytest", "pytest-timeout", "hypothesis", "ruff", "matplotlib", "megatron-core==0.16.1", "lm-eval"],
        "study": ["scipy", "matplotlib"],
        "eval": ["lm-eval"],
        "hf": ["transformers"],
    },
    entry_points={"console_scripts": ["ngpt=megatron_ngpt.cli:main"]},
)
