"""`ngpt evaluate`: the mean loss of a model on a dataset."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from megatron_ngpt.config.recipe import RopeScaling
from megatron_ngpt.data.batches import BatchSource, Rows
from megatron_ngpt.data.indexed import IndexedDataset, read_meta
from megatron_ngpt.data.tape import Tape, find_prefixes, select_documents
from megatron_ngpt.errors import CheckpointError, ConfigError, DataError
from megatron_ngpt.inference.forward import token_losses
from megatron_ngpt.inference.load import LoadedModel, load_model
from megatron_ngpt.inference.ranks import check_context, joined, shown
from megatron_ngpt.model.window import held_positions
from megatron_ngpt.parallel.collectives import reduce_vector
from megatron_ngpt.parallel.together import together

T = TypeVar("T")
BATCH = 8  # sequences that are read together
TOKENS = 1 << 14  # tokens that are put through the model together, where a sequence has no more


def run(
    path: Path,
    data: str,
    context: int | None,
    batches: int | None,
    kind: str | None,
    factor: float | None,
    tensor: int,
    pipeline: int,
    context_ranks: int,
) -> None:
    """The command: print the result of the model at `path`, with its positions scaled by `kind` and `factor` where they are given."""
    scales = kind not in (None, "none")
    if scales != (factor is not None):
        given = f"--rope_scaling {kind}" if scales else f"--rope_factor {factor:g}"
        raise ConfigError(f"{given}: --rope_scaling linear, ntk or yarn and --rope_factor, the context over the model's, go together")
    scaling = None if kind is None else RopeScaling(kind=kind, factor=factor or 1.0)
    with joined(tensor, pipeline, context_ranks) as grid:
        result = evaluate(load_model(path, mask_documents=None, grid=grid, scaling=scaling), data, context, batches)
        if grid.world.first:
            print(json.dumps(result))


def evaluate(loaded: LoadedModel, prefix: str, context: int | None = None, batches: int | None = None) -> dict:
    """Loss (nats a token), perplexity, tokens predicted, and the context they were predicted in (collective, the same on every rank).

    The dataset is read in windows of `context` tokens (default: the model's), each predicting as many: `batches` of 8 windows,
    spread over the dataset in the order that training's evaluation takes them; by default every window once. Readers
    take batches in turn.

    Raises:
        DataError: no such dataset, too short for one window, or made with another tokenizer.
        CheckpointError: the loss is not finite.
    """
    context = context or loaded.model.context
    check_context(loaded.module.blueprint, context)
    tape = open_tape(prefix)
    if tape.tokens <= context:
        raise DataError(f"--data: {prefix} has {tape.tokens} tokens; a window of --context {context} needs {context + 1}")
    check_tokenizer(loaded, prefix)
    source = BatchSource([tape], [1.0], context, BATCH, None, loaded.vocabulary)
    windows = source.samples_per_epoch if batches is None else min(batches * BATCH, source.samples_per_epoch)

    def summed(number: int) -> torch.Tensor:
        return _summed_loss(loaded, source.rows(number + 1, 0, min(BATCH, windows - number * BATCH)))

    loss = total(loaded, range(-(-windows // BATCH)), summed, 1).item() / (windows * context)
    check_finite(loss, prefix)
    return {"loss": loss, "perplexity": perplexity(loss), "tokens": windows * context, "context": context}


def perplexity(nats: float) -> float:
    """exp(nats a token or word), as far as a float can say it."""
    return math.exp(min(nats, 700.0))


def check_finite(loss: float, prefix: str) -> None:
    """Raise CheckpointError for a loss that is none."""
    if not math.isfinite(loss):
        raise CheckpointError(f"MODEL: its loss on {prefix} is {loss}, though its weights are finite: what it computes overflows")


def total(loaded: LoadedModel, parts: Sequence[T], summed: Callable[[T], torch.Tensor], size: int) -> torch.Tensor:
    """The sum of `summed`, float64 [size] on the CPU, over all parts and ranks (collective). Readers take parts in turn.

    `summed` finds this rank's share on the last pipeline stage, and zeros on those before it.
    """
    sums, mistake = torch.zeros(size, dtype=torch.float64), None
    try:
        for part in shown([parts[number] for number in loaded.grid.readers.turns(len(parts))], "evaluating"):
            sums += summed(part)
    except DataError as error:  # of this rank's windows, the same on all ranks that share them
        mistake = error

    def agree() -> None:
        if mistake:
            raise mistake

    together(agree, "evaluation")
    if not dist.is_initialized():
        return sums
    counts = loaded.grid.tensor.first  # tensor ranks have the same loss
    return reduce_vector(sums * counts, loaded.grid.world)


@torch.inference_mode()
def _summed_loss(loaded: LoadedModel, rows: Rows) -> torch.Tensor:
    """On the last pipeline stage the sum of all tokens' losses, elsewhere 0, float64 [1]."""
    module, sums = loaded.module, torch.zeros(1, dtype=torch.float64)
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))
    held = held_positions(module.blueprint, tokens.shape[1] - 1)
    for part in torch.arange(len(tokens)).split(max(1, TOKENS // tokens.shape[1])):
        documents = torch.from_numpy(rows.documents)[part, :-1] if module.blueprint.mask_documents else None
        inputs, targets = (tokens[part][:, places].to(loaded.device) for places in (held, held + 1))
        found = token_losses(module, inputs, targets, documents)
        if found is not None:
            sums += found.double().sum().cpu()
    return sums


def open_tape(prefix: str) -> Tape:
    """All documents of the datasets that `--data` names. Raises DataError."""
    try:
        datasets = [IndexedDataset(found) for found in find_prefixes(prefix)]
    except DataError as error:
        raise DataError(*(f"--data: {problem}" for problem in error.problems)) from None
    return Tape(select_documents(datasets, 0, sum(dataset.documents for dataset in datasets)))


def check_tokenizer(loaded: LoadedModel, prefix: str) -> None:
    """Ids of another tokenizer have losses that mean nothing."""
    if loaded.tokenizer_path is None or not loaded.tokenizer_path.is_file():
        return
    for found in find_prefixes(prefix):
        made_with = (read_meta(found) or {}).get("tokenizer_sha256")
        if made_with not in (None, loaded.tokenizer().sha256):
            raise DataError(f"--data: {found} was made with another tokenizer than the model's, {loaded.tokenizer_path}")
