"""`show-batch`: the exact tokens that a training step reads."""

import os
from pathlib import Path

import numpy as np

from megatron_ngpt.checkpoint.catalogue import Catalogue
from megatron_ngpt.checkpoint.seal import read_state
from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.data.batches import Rows, training_batches
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.training.phase import phase_at, phases_of


def step_rows(recipe_path: str, step: int | None, batch: int | None, overrides: list[str]):
    """(recipe, the rows of the whole global batch of step `step`, or of the batch of that number, in global order).

    Batches are numbered as steps are where none was skipped. Where the run has begun, its newest checkpoint says in which phase the step
    lies, and what was skipped. Raises ConfigError if the recipe is of another one.
    """
    recipe = load_recipe(recipe_path, overrides)
    found, _ = Catalogue(Path(recipe.training.output)).find(recipe.checkpoint.resume)
    number, key = (step, "--step") if batch is None else (batch, "--batch")
    phase = phase_at(phases_of(recipe, found and read_state(found)), number)
    if (phase.context, phase.global_batch) != (recipe.model.context, recipe.training.global_batch):
        raise ConfigError(f"{key} {number}: {found} says that model.context was {phase.context} then and training.global_batch "
                          f"{phase.global_batch}; give the recipe of that phase, or a later step")
    skipped = phase.skipped if batch is None else ()
    return recipe, training_batches(recipe).after(phase.after, skipped).rows(number, 0, recipe.training.global_batch)


def save_rows(rows: Rows, output: str) -> None:
    """Write the tokens, int32 [global_batch, context + 1], as a .npy file under exactly this name."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.save(file, rows.tokens)
    os.replace(temporary, path)


def print_rows(rows: Rows, tokenizer_path: str) -> None:
    """Write each row's text under a line with the document and the offset that its first token lies at."""
    tokenizer = Tokenizer(tokenizer_path)
    for number, (tokens, (prefix, document, offset)) in enumerate(zip(rows.tokens, rows.origins(), strict=True)):
        last = int(rows.documents[number, -1])
        reach = f" and {last} more" if last else ""
        print(f"--- row {number}: {prefix}, document {document} from token {offset} on{reach}")
        print(tokenizer.decode(tokens))
