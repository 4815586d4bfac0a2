"""The code that exports carry, as it lies in this package."""

import shutil
from collections.abc import Iterable
from pathlib import Path

MODEL = ("configuration_ngpt", "modeling_ngpt")
CLASS = "tokenization_sentencepiece.SentencePieceTokenizer"

_SOURCES = Path(__file__).parent / "remote"


def copy_code(modules: Iterable[str], directory: Path) -> None:
    """Copy modules of `remote/` into an export."""
    for module in modules:
        shutil.copyfile(_SOURCES / f"{module}.py", directory / f"{module}.py")
