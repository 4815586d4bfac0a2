"""One corpus and one table of runs for the whole session."""

from pathlib import Path

import pytest

from tests.distributed.corpus import REPOSITORY, make_corpus
from tests.distributed.layouts import Table


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(scope="session")
def table(corpus, tmp_path_factory) -> Table:
    return Table(tmp_path_factory.mktemp("layouts"), corpus / "recipe.yaml", corpus)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    """Recipes name ds_configs/ from the repository's root, as users do."""
    monkeypatch.chdir(REPOSITORY)
