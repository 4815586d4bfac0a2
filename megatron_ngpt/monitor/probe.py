"""What is measured of hidden states: a forward pass over a few sequences, in which each block is watched.

The sequences are the same on all data ranks, which so find the same; one of them counts. Blocks are run as they are, not compiled.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from megatron_ngpt.model.blocks import Block
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.ends import Head
from megatron_ngpt.monitor.entropy import QUERIES, attention_entropy, prediction_entropy
from megatron_ngpt.monitor.sums import Sums
from megatron_ngpt.sphere.geometry import unit

SEQUENCES = 4  # looked at, or all of a smaller global batch
OF_BLOCKS = ("cosine_attention", "cosine_mlp", "angle_attention", "angle_mlp", "entropy_attention")


def probe_shapes(blueprint: Blueprint) -> dict[str, tuple[int, ...]]:
    """The tensors that a `Probe` adds to: means by block, and one of the head."""
    return {name: (blueprint.model.layers,) for name in OF_BLOCKS} | {"entropy_predictions": ()}


class Probe:
    """Watches the blocks and the head of `module`, as far as this rank has them.

    Args:
        blueprint: the model's.
        sequences: how many are looked at; those after them in the same forward passes are not.
    """

    def __init__(self, module: nn.Module, blueprint: Blueprint, sequences: int):
        grid, model = blueprint.grid, blueprint.model
        self._blocks = {block.number: block for block in module.modules() if isinstance(block, Block)}
        self._head = next((layer for layer in module.modules() if isinstance(layer, Head)), None)
        self._sequences, self._blueprint = sequences, blueprint
        counts = float(grid.readers.first)
        tokens = sequences * model.context
        self._a_token = counts * (1.0 if blueprint.sequence or grid.tensor.first else 0.0) / tokens  # ranks share, or repeat, the tokens
        self._a_query = counts / (sequences * min(QUERIES, model.context) * model.heads)
        self._a_prediction = counts * float(grid.tensor.first) / tokens
        self._sums: Sums | None = None
        self._seen: dict[object, int] = {}
        self._h: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self, sums: Sums) -> Iterator[None]:
        """Forward passes of the block, over micro-batches that begin with the sequences, add to `sums`."""
        self._sums, self._seen = sums, {}
        with ExitStack() as stack:
            for number, block in self._blocks.items():
                for handle in self._hooks(number, block):
                    stack.callback(handle.remove)
                stack.callback(setattr, block, "_run", block._run)
                block._run = block.step
                stack.enter_context(self._watched_attention(number, block))
            if self._head is not None:
                stack.callback(self._head_hook().remove)
            yield
        self._h.clear()

    def _hooks(self, number: int, block: Block) -> Iterator:
        """The places at which a block is looked at: h before its two moves, between them and after them, and what it moves towards."""
        between = getattr(block, "post_attention_layernorm", block.mlp)
        yield block.register_forward_pre_hook(lambda _, inputs: self._keep("before", inputs[0]))
        yield block.self_attn.register_forward_hook(lambda _, __, out: self._cosine("cosine_attention", number, "before", out))
        yield between.register_forward_pre_hook(lambda _, inputs: self._angle("angle_attention", number, "before", inputs[0], "between"))
        yield block.mlp.register_forward_hook(lambda _, __, out: self._cosine("cosine_mlp", number, "between", out))
        yield block.register_forward_hook(lambda _, __, out: self._angle("angle_mlp", number, "between", out))

    def _head_hook(self):
        """Where the head reads h: in a pipeline its parts are used without a call of it, and its parameters are always whole."""

        def look(h_BTD: torch.Tensor) -> None:
            self._sums["entropy_predictions"].add_(prediction_entropy(self._head, self._counted(self._head, h_BTD)) * self._a_prediction)

        if self._blueprint.grid.pipeline.size > 1:
            return self._blocks[max(self._blocks)].register_forward_hook(lambda _, __, out: look(out))
        return self._head.register_forward_pre_hook(lambda _, inputs: look(inputs[0]))

    @contextmanager
    def _watched_attention(self, number: int, block: Block) -> Iterator[None]:
        """Queries and keys as the scores use them."""
        attention = block.self_attn
        attend = attention.attend

        def watched(q_BTHK, k_BTGK, v_BTGK, window):
            q, k = (self._counted((number, which), x) for which, x in (("q", q_BTHK), ("k", k_BTGK)))
            if len(q):
                self._sums["entropy_attention"][number] += attention_entropy(attention, q, k, window) * self._a_query
            return attend(q_BTHK, k_BTGK, v_BTGK, window)

        attention.attend = watched
        try:
            yield
        finally:
            del attention.attend

    def _counted(self, place: object, x: torch.Tensor) -> torch.Tensor:
        """Of what passes a place, the sequences that are looked at."""
        before = self._seen.get(place, 0)
        self._seen[place] = before + len(x)
        return x[: max(0, self._sequences - before)]

    def _keep(self, name: str, h_BTD: torch.Tensor) -> None:
        self._h[name] = h_BTD

    def _cosine(self, name: str, number: int, start: str, out_BTD: torch.Tensor) -> None:
        out = self._counted((name, number), out_BTD)
        total = (unit(self._h[start][: len(out)]) * unit(out)).sum()
        self._sums[name][number] += total * self._a_token

    def _angle(self, name: str, number: int, start: str, h_BTD: torch.Tensor, keep: str | None = None) -> None:
        h = self._counted((name, number), h_BTD)
        chord_BT = (unit(self._h[start][: len(h)]) - unit(h)).norm(dim=-1)
        self._sums[name][number] += (2 * torch.asin((chord_BT / 2).clamp(max=1))).sum() * self._a_token
        if keep:
            self._keep(keep, h_BTD)
