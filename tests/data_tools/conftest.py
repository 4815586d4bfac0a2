"""Fixtures of the data tools' tests: a tokenizer, and the commands run in this process."""

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))

from small_data import make_tokenizer

from data_tools import __main__ as tools


@dataclass
class Outcome:
    """What a command printed and left with."""

    code: int
    out: str
    err: str


@pytest.fixture()
def run(monkeypatch, capsys):
    """Run `python -m data_tools ARGUMENTS` in this process."""
    def call(*arguments) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["data_tools", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            tools.main()
            sys.exit(0)
        captured = capsys.readouterr()
        return Outcome(int(left.value.code or 0), captured.out, captured.err)
    return call


@pytest.fixture(scope="session")
def source_texts() -> list[str]:
    """Some modules of the standard library, as texts."""
    library = Path(sysconfig.get_paths()["stdlib"])
    names = "abc.py", "bisect.py", "copy.py", "heapq.py", "textwrap.py", "this.py"
    return [(library / name).read_text("utf-8") for name in names]


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory, source_texts) -> str:
    """A SentencePiece model of 400 entries."""
    lines = [line for text in source_texts for line in text.split("\n")]
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small.model", lines)
