"""The command `ngpt analyze`."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_ngpt.arguments import LARGEST_COUNT, finite


def analyze(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="run directories, checkpoints or exported directories")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="a new or empty directory")],
    data: Annotated[str | None, typer.Option(metavar="PREFIX", help="a dataset for all models; default: each run's own validation")] = None,
    tokens: Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="of the data, at whose hidden states Jacobians are taken")] = 64,
    steps: Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="most directions that a Jacobian is tried in")] = 100,
    tolerance: Annotated[float, typer.Option(min=0, max=1, callback=finite, help="of a rank, over the largest singular value")] = 1e-3,
) -> None:
    """Write figures, CSV and report.html: how one or several models are conditioned, side by side.

    Of the weights: condition numbers, ranks and spectra by layer and head, embeddings, nGPT's learned scales. Of the network's function,
    at hidden states of real text: how far its output moves for a small move of its input, the extreme singular values of its Jacobians. And
    s_z against token frequency. An export of ngpt, or a Llama of transformers, needs --data for the last two. One matrix is in
    memory at a time. Needs the extra `study`.

    Example: ngpt analyze runs/quickstart runs/quickstart-gpt --out runs/analysis
    """
    from megatron_ngpt.analysis.analyze import Choices, run

    run(models, out, Choices(data, tokens, steps, tolerance))
