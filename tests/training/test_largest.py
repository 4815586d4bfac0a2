"""The largest single tensor of a training step: nothing grows with the square of the context, nor with tokens times vocabulary."""

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel import head_loss
from megatron_ngpt.parallel.grid import make_grid
from tests.on_ranks import on_ranks

LENGTH, AT_ONCE = 512, 1 << 14  # tokens, and entries of logits at once: few enough that a chunk is small beside the rest
SHAPE = {"layers": 1, "hidden": 16, "heads": 2, "ffn": 32}


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest storage that an operation makes, in forward and backward."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.nbytes = max([self.nbytes, *made])
        return out


def largest(length: int, vocabulary: int, mask: bool, kind: str) -> int:
    """Bytes of the largest tensor in a training step on one sample of `length` tokens."""
    torch.manual_seed(0)
    head_loss.LOGITS_AT_ONCE = AT_ONCE
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    grid = make_grid(context=ranks)
    module = Decoder(Blueprint(Model(context=length, **SHAPE), vocabulary, grid, context_kind=kind, mask_documents=mask))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    held = torch.randint(vocabulary, (1, length // ranks))
    documents = (torch.arange(length) // (length // 4)).unsqueeze(0)
    with Largest() as found:
        module((held, documents) if mask else held, held).backward()
    return found.nbytes


def of_lengths_and_vocabularies(mask: bool, kind: str) -> tuple[int, int, int]:
    """Bytes at T, at 2 T, and at T with twice the vocabulary."""
    return largest(LENGTH, 256, mask, kind), largest(2 * LENGTH, 256, mask, kind), largest(LENGTH, 512, mask, kind)


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize("mask", [False, True])
def test_the_largest_tensor_grows_no_faster_than_the_tokens(mask, kind):
    for once, longer, wider in on_ranks(2, of_lengths_and_vocabularies, mask, kind):
        assert longer <= 2 * once
        assert wider <= once
        assert longer < 4 * 2 * LENGTH * 256 // 2  # fp32 logits of this rank's tokens
