"""What tests of several rooms share: one small corpus and one table of runs for the whole session."""

from pathlib import Path

import hypothesis
import pytest

from megatron_ngpt.parallel.device import keep_compiled_code_by_processor
from tests.distributed.corpus import REPOSITORY, make_corpus

hypothesis.settings.register_profile("no deadline", deadline=None)  # tests never judge times
hypothesis.settings.load_profile("no deadline")
keep_compiled_code_by_processor()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longer than CI has is run only where it is asked for: -m long, -m soak."""
    for marker in ("long", "soak"):
        if marker not in config.option.markexpr:
            left_out = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A directory with tokenizer.model, datasets a and b, and recipe.yaml."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(scope="session")
def table(corpus, tmp_path_factory):
    """Runs layouts, and the one-rank runs they are compared with."""
    from tests.distributed.layouts import Table

    return Table(tmp_path_factory.mktemp("layouts"), corpus / "recipe.yaml", corpus)


@pytest.fixture
def in_repository(monkeypatch):
    """Recipes name ds_configs/ from the repository's root, as users do."""
    monkeypatch.chdir(REPOSITORY)
