"""Keys and values of the tokens that a model has seen, so that each is computed once.

A token's place in the cache is its position in its own sequence. Rows of different length need no padding in front: a shorter row's
padding stands behind its tokens, where causality hides it from them, and is written over before any token may see it.
Shapes: B rows, T new tokens, S tokens in the cache, H query heads, G key/value heads here, K head size.
"""

import torch
import torch.nn.functional as F

from megatron_ngpt.model.attention import causal_attention
from megatron_ngpt.model.blocks import Block
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.rotary import rotation_table
from megatron_ngpt.model.window import Window

GROWTH = 1.5  # of the memory, where more tokens come than there is room for
LEAST_CAPACITY = 256


class LayerPast:
    """One layer's keys and values, [B, G, capacity, K] each."""

    def __init__(self, cache: "KeyValueCache", keys: torch.Tensor, values: torch.Tensor):
        self.cache, self.keys, self.values = cache, keys, values

    def attend(self, q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, v_BTGK: torch.Tensor, scale: float) -> torch.Tensor:
        """Keep k and v at the positions that `KeyValueCache.extend` gave them; what q sees up to its own, [B, T, H, K]."""
        cache = self.cache
        for kept, new in ((self.keys, k_BTGK), (self.values, v_BTGK)):
            kept.transpose(1, 2)[cache.rows_B1, cache.positions_BT] = new
        if cache.fresh:
            return causal_attention(q_BTHK, k_BTGK, v_BTGK, scale)
        rows, tokens, heads, size = q_BTHK.shape
        groups = k_BTGK.shape[2]
        # The heads that share keys become the rows of one product with them, so that the cache is read once.
        q = q_BTHK.transpose(1, 2).reshape(rows, groups, -1, size)
        mask = None if cache.mask is None else cache.mask.repeat(1, 1, heads // groups, 1)
        keys, values = self.keys[:, :, : cache.end], self.values[:, :, : cache.end]
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
        return out.view(rows, heads, tokens, size).transpose(1, 2)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens. Zeros, as what is masked still counts 0 times in a sum, which must not be 0 times a NaN."""
        self.keys, self.values = (F.pad(kept, (0, 0, 0, capacity - kept.shape[2])) for kept in (self.keys, self.values))

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class KeyValueCache:
    """What this rank's layers keep of a batch: memory that grows with its tokens, up to `most` a row.

    Attributes:
        lengths: tokens that each row has, int64 [B], on the CPU.
        layers: the past of each block of the module, in order.
    """

    def __init__(self, module: Decoder, rows: int, most: int):
        self._model, self.device = module.blueprint.model, next(module.parameters()).device
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        self.capacity, self._most = 0, most
        dtype = next(module.parameters()).dtype  # also of keys and values
        shape = (rows, self._model.groups // module.blueprint.grid.tensor.size, 0, self._model.head_size)
        self.layers = [
            LayerPast(self, *(torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2)))
            for layer in module.layers
            if isinstance(layer, Block)
        ]

    def extend(self, tokens: int) -> Window:
        """Let the next call of each layer add `tokens` to every row; returns their window."""
        positions_BT = self.lengths.unsqueeze(1) + torch.arange(tokens)
        self.fresh = not self.lengths.any()
        self.end = int(self.lengths.max()) + tokens
        if self.end > self.capacity:
            self._grow()
        self.rows_B1 = torch.arange(len(self.lengths), device=self.device).unsqueeze(1)
        self.positions_BT = positions_BT.to(self.device)
        even = bool((self.lengths == self.lengths[0]).all())
        self.mask = None
        if not self.fresh and not (even and tokens == 1):
            self.mask = (torch.arange(self.end, device=self.device) <= self.positions_BT.unsqueeze(-1)).unsqueeze(1)
        cos, sin = self._table
        return Window(cos[self.positions_BT], sin[self.positions_BT])

    def _grow(self) -> None:
        wanted = max(self.end, LEAST_CAPACITY, int(self.capacity * GROWTH))
        self.capacity = max(self.end, min(wanted, self._most))
        self._table = rotation_table(self.capacity, self._model, self.device)
        for layer in self.layers:
            layer.grow(self.capacity)

    def settle(self, counts: torch.Tensor) -> None:
        """Count the first `counts` (int64 [B] on the CPU) of each row's newest tokens as its own; the others were padding."""
        self.lengths = self.lengths + counts

    def select(self, rows: list[int]) -> None:
        """Go on with these rows in this order: a row left out has ended, one named twice goes on in two ways."""
        self.lengths = self.lengths[rows]
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.device)
        for layer in self.layers:
            layer.select(chosen)
