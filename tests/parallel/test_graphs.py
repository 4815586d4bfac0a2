"""A compiled block of tensor or context ranks is one graph forward and one backward, whatever documents come, and computes what the
eager one does."""

import torch
import torch.distributed as dist

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.window import window_of
from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.sphere.geometry import unit
from tests.model.small import SHAPE, VOCABULARY
from tests.on_ranks import on_ranks

TENSOR, CONTEXT, MASK = {"tensor": 2}, {"context": 2}, {"mask_documents": True}
# The documents of two batches, [2, 16] each.
BATCHES = [torch.tensor([[0] * 5 + [1] * 11, [0] * 16]), torch.tensor([[0] + [1] * 8 + [2] * 3 + [3] * 4, [0] * 9 + [1] * 7])]
KINDS = {  # axes of the ranks, keys of the model, options of the blueprint
    "ngpt": (TENSOR, {}, {}),
    "ngpt, sequence, selective": (TENSOR, {}, {"sequence": True, "recompute": "selective"}),
    "gpt, sequence": (TENSOR, {"arch": "gpt"}, {"sequence": True}),
    "ngpt, context by heads": (CONTEXT, {}, {"context_kind": "ulysses"}),
    "ngpt, context in a ring": (CONTEXT, {}, {"context_kind": "ring"}),
    "ngpt, sequence, selective, documents": (TENSOR, {}, {"sequence": True, "recompute": "selective", **MASK}),
    "gpt, context by heads, documents": (CONTEXT, {"arch": "gpt"}, {"context_kind": "ulysses", **MASK}),
    "ngpt, context in a ring, documents": (CONTEXT, {}, {"context_kind": "ring", **MASK}),
}


def of_block(run, block, h_BTD: torch.Tensor, window) -> list[torch.Tensor]:
    """What a block puts out, and all gradients of a loss of it."""
    block.zero_grad()
    h_BTD = h_BTD.clone().requires_grad_()
    out = run(h_BTD, window)
    (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
    return [out.detach(), h_BTD.grad, *(parameter.grad.clone() for parameter in block.parameters())]


def compiled_and_eager() -> dict[str, tuple[list[str], float]]:
    """By kind of block: the graphs that were made of it, in order, and how far the compiled block is from the eager one."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    found = {}
    for name, (axes, keys, options) in KINDS.items():
        grid, model = make_grid(**axes), Model(**SHAPE, **keys)
        module = Decoder(Blueprint(model, VOCABULARY, grid, **options))
        initialise(shards_of(module), 0)
        block, length = module.layers[1], model.context // axes.get("context", 1)
        batches = BATCHES if "mask_documents" in options else [None]
        windows = [window_of(module.blueprint, length, documents, module) for documents in batches]
        h_BTD = unit(torch.randn(2, model.context, model.hidden, generator=torch.Generator().manual_seed(0)))
        if axes == CONTEXT or options.get("sequence"):
            h_BTD = h_BTD.chunk(2, 1)[dist.get_rank()]
        eager, made = [x for window in windows for x in of_block(block.step, block, h_BTD, window)], []
        torch._dynamo.reset()
        backend = aot_autograd(
            fw_compiler=lambda graph, _, made=made: made.append("forward") or make_boxed_func(graph.forward),
            bw_compiler=lambda graph, _, made=made: made.append("backward") or make_boxed_func(graph.forward),
        )
        run = torch.compile(block.step, backend=backend)
        compiled = [x for window in windows for x in of_block(run, block, h_BTD, window)]
        apart = max(((a - b).norm() / b.norm()).item() for a, b in zip(compiled, eager, strict=True))
        found[name] = made, apart
    return found


def test_collectives_break_no_graph():
    for found in on_ranks(2, compiled_and_eager, seconds=150):
        for name, (graphs, apart) in found.items():
            assert graphs == ["forward", "backward"], name
            assert apart < 1e-6, name
