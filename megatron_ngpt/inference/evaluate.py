"""`ngpt evaluate`: the mean loss of a model on a dataset."""

import math

import numpy as np
import torch

from megatron_ngpt.data.batches import BatchSource, Rows
from megatron_ngpt.data.indexed import IndexedDataset, read_meta
from megatron_ngpt.data.tape import Tape, find_prefixes, select_documents
from megatron_ngpt.errors import DataError
from megatron_ngpt.inference.load import LoadedModel
from megatron_ngpt.model.ends import Loss

BATCH = 8  # sequences that are put through the model together


def evaluate(loaded: LoadedModel, prefix: str, context: int | None = None, batches: int | None = None) -> dict:
    """Loss (nats a token), perplexity, tokens predicted, and the context they were predicted in.

    The dataset is read in windows of `context` tokens (default: the model's), each predicting as many: `batches` of 8 windows,
    spread over the dataset in the order that training's evaluation takes them; by default every window once.

    Raises:
        DataError: no such dataset, too short for one window, or made with another tokenizer.
    """
    context = context or loaded.model.context
    tape = _open(prefix, context)
    _check_tokenizer(loaded, prefix)
    source = BatchSource([tape], [1.0], context, BATCH, None, loaded.vocabulary)
    windows = source.samples_per_epoch if batches is None else min(batches * BATCH, source.samples_per_epoch)
    steps = range(-(-windows // BATCH))
    total = math.fsum(_summed_loss(loaded, source.rows(n + 1, 0, min(BATCH, windows - n * BATCH))) for n in steps)
    tokens = windows * context
    loss = total / tokens
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens, "context": context}


@torch.no_grad()
def _summed_loss(loaded: LoadedModel, rows: Rows) -> float:
    tokens = torch.from_numpy(rows.tokens.astype(np.int64)).to(loaded.device)
    batch = tokens[:, :-1]
    if loaded.module.blueprint.mask_documents:
        batch = batch, torch.from_numpy(rows.documents).to(loaded.device)[:, :-1]
    targets = tokens[:, 1:].contiguous()
    return Loss(loaded.module.blueprint)(loaded.module(batch), targets).item() * targets.numel()


def _open(prefix: str, context: int) -> Tape:
    try:
        datasets = [IndexedDataset(found) for found in find_prefixes(prefix)]
    except DataError as error:
        raise DataError(*(f"--data: {problem}" for problem in error.problems)) from None
    tape = Tape(select_documents(datasets, 0, sum(dataset.documents for dataset in datasets)))
    if tape.tokens <= context:
        raise DataError(f"--data: {prefix} has {tape.tokens} tokens; a window of --context {context} needs {context + 1}")
    return tape


def _check_tokenizer(loaded: LoadedModel, prefix: str) -> None:
    """Ids of another tokenizer have losses that mean nothing."""
    if loaded.tokenizer_path is None or not loaded.tokenizer_path.is_file():
        return
    for found in find_prefixes(prefix):
        made_with = (read_meta(found) or {}).get("tokenizer_sha256")
        if made_with not in (None, loaded.tokenizer().sha256):
            raise DataError(f"--data: {found} was made with another tokenizer than the model's, {loaded.tokenizer_path}")
