"""Fixtures of the data room's tests."""

import sysconfig
from pathlib import Path

import pytest
from small_data import make_tokenizer


@pytest.fixture(scope="session")
def source_lines() -> list[str]:
    """Lines of a standard library module: real text on any machine with Python."""
    return (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text("utf-8").split("\n")[:800]


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory, source_lines) -> str:
    """A SentencePiece model of 400 entries."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small.model", source_lines)
