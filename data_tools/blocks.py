"""A dataset's tokens in blocks, for what reads all of them."""

from collections.abc import Iterator

import numpy as np

from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.monitor.progress import byte_progress

BLOCK = 1 << 22  # entries of a file that are looked at together


def token_blocks(dataset: IndexedDataset) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the block's first token, tokens) in order, with a bar that says how far it is."""
    with byte_progress() as bar:
        task = bar.add_task("tokens", total=dataset.tape.nbytes)
        for start in range(0, dataset.tokens, BLOCK):
            block = dataset.tape[start : start + BLOCK]
            yield start, block
            bar.update(task, advance=block.nbytes)
