"""`ngpt report`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_ngpt.errors import ConfigError

RUNS = typer.Argument(metavar="RUN", help="run directories (training.output)")


def report(
    runs: Annotated[list[Path], RUNS],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="the page to write")],
) -> None:
    """Write one page of a run, or of several side by side: curves, verdicts in words, what happened. It needs no network to be read."""
    from megatron_ngpt.monitor.report import write_report

    if out.is_dir() or not out.parent.is_dir():
        wrong = "is a directory" if out.is_dir() else f"no directory {out.parent}"
        raise ConfigError(f"--out {out}: {wrong}; give a file to write, such as report.html")
    write_report(runs, out)
    print(out)
