"""The command `ngpt evaluate --lengths`: one model or several, scalings one by one, each result told as soon as it is known."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_ngpt.errors import ConfigError
from megatron_ngpt.inference.lengths import LengthResult, evaluate_length, open_text, scaling_for
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.inference.ranks import joined
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.together import on_first_rank


@dataclass(frozen=True)
class Request:
    """What is asked: lengths in rising order, the stride (None: each length itself), how many documents (None: all), scalings of the
    rotary embedding by name (None: the model's own), and their factor (None: by length)."""

    lengths: list[int]
    stride: int | None
    documents: int | None
    kinds: list[str | None]
    factor: float | None


def run(models: list[Path], data: str, request: Request, out: Path | None, tensor: int, pipeline: int, context_ranks: int) -> None:
    """Print a JSON object for each model, scaling and length; with `out` also write figures, CSV and JSON there."""
    if request.factor is not None and not set(request.kinds) - {None, "none"}:
        raise ConfigError(f"--rope_factor {request.factor:g}: scales with --rope_scaling linear, ntk or yarn; give one of them")
    if request.stride and request.stride > request.lengths[0]:
        raise ConfigError(
            f"--stride {request.stride}: windows of --lengths {request.lengths[0]} would leave tokens out between them; "
            f"give at most {request.lengths[0]}"
        )
    if out:
        from megatron_ngpt.inference.lengths_output import check_output, write_output

        check_output(out)
    results = []
    with joined(tensor, pipeline, context_ranks) as grid:
        for path in models:
            for result in results_of(path, data, request, grid):
                results.append(result)
                if grid.world.first:
                    print(json.dumps(result.shown()), flush=True)
        if out:
            on_first_rank(lambda: write_output(out, results), f"--out {out} could not be written")


def results_of(path: Path, data: str, request: Request, grid: RankGrid) -> Iterator[LengthResult]:
    """The results of one model, one by one (collective). Its parameters are read once, whatever their positions are scaled by."""
    loaded = load_model(path, grid=grid)
    text = open_text(loaded, data, request.documents, request.lengths)
    for kind in request.kinds:
        for length in request.lengths:
            scaled = loaded.scaled(scaling_for(loaded.model, kind, request.factor, length))
            yield evaluate_length(scaled, text, length, request.stride, str(path), kind)
