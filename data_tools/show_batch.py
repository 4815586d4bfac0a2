"""`show-batch`: the exact tokens that a training step reads."""

import os
from pathlib import Path

import numpy as np

from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.data.batches import Rows, training_batches
from megatron_ngpt.data.tokenizer import Tokenizer


def step_rows(recipe_path: str, step: int, overrides: list[str]):
    """(recipe, the rows of the whole global batch of step `step`, in global order)."""
    recipe = load_recipe(recipe_path, overrides)
    return recipe, training_batches(recipe).rows(step, 0, recipe.training.global_batch)


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
