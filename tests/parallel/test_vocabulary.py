"""The input embedding over ranks: looked-up vectors and their gradients, against torch's without ranks."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.parallel.vocabulary import HiddenParallelEmbedding, VocabularyParallelEmbedding
from tests.on_ranks import on_ranks
from tests.records import record

B, T, D = 2, 6, 12
VOCABULARIES = (9, 7, 4, 5)  # over 3 ranks: divides; padding; a rank of padding alone; one real entry on the last


def entries_here(entries: int, axis) -> tuple[int, int]:
    """(first, number) of the entries on this rank, counted by hand."""
    each = -(-entries // axis.size)
    here = [e for e in range(entries) if e // each == axis.rank]
    return axis.rank * each, len(here)


def check_embeddings():
    axis = make_grid(tensor=dist.get_world_size()).tensor
    generator = torch.Generator().manual_seed(5)
    for entries in VOCABULARIES:
        table = torch.randn(entries, D, generator=generator)
        tokens = torch.randint(0, entries, (B, T), generator=generator)
        given = torch.randn(B, T, D, generator=generator)
        whole = table.double().requires_grad_()
        wanted = F.embedding(tokens, whole)
        (wanted * given).sum().backward()
        for kind, cut in ((VocabularyParallelEmbedding, 0), (HiddenParallelEmbedding, 1)):
            for sequence in (False, True):
                check_embedding(kind(record((entries, D), cut, pads=cut == 0), axis, sequence), table, whole.grad, tokens, wanted, given)


def check_embedding(layer, table, wanted_gradient, tokens, wanted, given):
    axis = layer.axis
    first, count = entries_here(table.shape[0], axis)
    if isinstance(layer, HiddenParallelEmbedding):
        width = D // axis.size
        own, real = (slice(None), slice(axis.rank * width, (axis.rank + 1) * width)), slice(None)
    else:
        own, real = (slice(first, first + count), slice(None)), slice(0, count)
    with torch.no_grad():
        layer.weight[real] = table[own]
    found = layer(tokens)
    sequence = slice(axis.rank * T // axis.size, (axis.rank + 1) * T // axis.size) if layer.sequence else slice(None)
    (found * given[:, sequence]).sum().backward()
    assert torch.equal(found, wanted[:, sequence].float())
    torch.testing.assert_close(layer.weight.grad[real].double(), wanted_gradient[own], rtol=1e-6, atol=1e-6)
    assert not layer.weight.grad[layer.weight.grad.shape[0] if real == slice(None) else count :].any(), "padding got a gradient"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_embeddings_and_their_gradients(ranks):
    on_ranks(ranks, check_embeddings)
