"""`ngpt evaluate`: its options."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from megatron_ngpt.arguments import LARGEST_COUNT, MODEL, PIPELINE, TENSOR, finite, parse_lengths
from megatron_ngpt.errors import ConfigError


class Scaling(Enum):
    """Of a rotary embedding's positions."""

    none = "none"
    linear = "linear"
    ntk = "ntk"
    yarn = "yarn"


def evaluate(
    model: Annotated[list[Path], MODEL],
    data: Annotated[str, typer.Option(metavar="PREFIX", help="the dataset PREFIX.bin + PREFIX.idx; may be a glob")],
    context: Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, help="tokens a window predicts; default: the model's")] = None,
    batches: Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, help="batches of 8 windows; default: the whole dataset")] = None,
    lengths: Annotated[str | None, typer.Option(metavar="N,N,...", help="long context: within documents, at each of these lengths")] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_COUNT, help="with --lengths, from window to window; default: the length")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_COUNT, help="with --lengths, the first so many; default: all")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="with --lengths, for figures, CSV and JSON")] = None,
    rope_scaling: Annotated[
        list[Scaling] | None,
        typer.Option("--rope_scaling", help="of positions; default: the model's own; with --lengths it may be repeated"),
    ] = None,
    rope_factor: Annotated[
        float | None, typer.Option("--rope_factor", min=1, callback=finite, help="context over the model's; with --lengths by length")
    ] = None,
    tensor: Annotated[int, TENSOR] = 1,
    pipeline: Annotated[int, PIPELINE] = 1,
    context_ranks: Annotated[int, typer.Option("--context_ranks", min=1, help="ranks that the tokens of a window are divided over")] = 1,
) -> None:
    """Print a model's loss, perplexity, tokens and context on a dataset, as one JSON object.

    Longer than the model was trained with: --rope_scaling and --rope_factor, as the recipe's model.rope_scaling.
    With --lengths, for one model or several, a JSON object for each length, from 1024,2048,... say: windows within documents, perplexity
    a token and a word; figures, CSV and JSON with --out.
    On several ranks (torchrun --nproc_per_node N -m megatron_ngpt evaluate ...) those beyond tensor · pipeline · context_ranks share
    the windows.
    """
    layout, kinds = (tensor, pipeline, context_ranks), list(dict.fromkeys(kind.value for kind in rope_scaling or []))
    if lengths is None:
        _check_plain(model, stride, documents, out, kinds)
        from megatron_ngpt.inference.evaluate import run

        run(model[0], data, context, batches, kinds[0] if kinds else None, rope_factor, *layout)
        return
    for option, value in (("--context", context), ("--batches", batches)):
        if value is not None:
            raise ConfigError(f"{option} {value}: not with --lengths, which are its contexts; --documents limits what is read")
    from megatron_ngpt.inference.lengths_command import Request, run

    run(model, data, Request(parse_lengths(lengths), stride, documents, kinds or [None], rope_factor), out, *layout)


def _check_plain(models: list[Path], stride: int | None, documents: int | None, out: Path | None, kinds: list[str]) -> None:
    """Refuse what only --lengths takes."""
    for option, value in (("--stride", stride), ("--documents", documents), ("--out", out)):
        if value is not None:
            raise ConfigError(f"{option} {value}: only with --lengths; give --lengths 1024,2048 or so, or leave {option} out")
    for option, values in (("MODEL", models), ("--rope_scaling", kinds)):
        if len(values) > 1:
            raise ConfigError(f"{option} {values[1]}: one is enough; several can be compared with --lengths")
