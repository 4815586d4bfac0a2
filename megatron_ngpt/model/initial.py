"""The initial model: a function of the seed and each parameter's name alone, never of the layout.

A global matrix is drawn in blocks of whole rows, each from a generator of its own (Philox, keyed by seed, name and block number), and a
rank draws just the blocks that its boxes touch, one at a time.
"""

import hashlib

import numpy as np
import torch

from megatron_ngpt.config.parameters import Constant
from megatron_ngpt.parallel.shards import Box, Shard

_BLOCK_ENTRIES = 1 << 18


@torch.no_grad()
def initialise(shards: dict[str, Shard], seed: int) -> None:
    """Fill every master; spherical rows are not yet of length 1, and the copies that the forward pass uses are not yet made."""
    for shard in shards.values():
        start = shard.placement.record.start
        for box in shard.boxes(shard.master):
            if isinstance(start, Constant):
                box.values.fill_(start.value)
            else:
                _fill_normal(box, shard, seed, start.deviation)


def _fill_normal(box: Box, shard: Shard, seed: int, deviation: float) -> None:
    rows, columns = shard.placement.shape
    height = max(1, _BLOCK_ENTRIES // columns)
    for block in range(box.rows.start // height, -(-box.rows.stop // height)):
        first = block * height
        values = _normal_block(seed, shard.name, block, min(height, rows - first), columns)
        start, stop = max(first, box.rows.start), min(first + height, box.rows.stop)
        chosen = torch.from_numpy(values[start - first : stop - first, box.columns]) * deviation
        box.values[start - box.row : stop - box.row] = chosen.to(box.values.device)


def _normal_block(seed: int, name: str, block: int, rows: int, columns: int) -> np.ndarray:
    words = np.frombuffer(hashlib.sha256(f"{seed} {name} {block}".encode()).digest()[:16], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=words))
    return generator.standard_normal((rows, columns), dtype=np.float32)
