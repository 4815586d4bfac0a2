"""Head and loss in chunks, over ranks that divide the vocabulary, against torch's float64 without either: the loss and every gradient."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.machine import peak_bytes
from megatron_ngpt.parallel import cross_entropy, head_loss, row_parts
from megatron_ngpt.parallel.grid import Axis, make_grid
from tests.on_ranks import on_ranks
from tests.parallel.test_vocabulary import VOCABULARIES, entries_here

B, T, D = 2, 6, 12
SCALES = (None, 1.0, 60.0)  # no scale; as it starts; as it is learned, where probabilities are all but 0 and 1


def check(vocabularies=VOCABULARIES, chunk=None, compiled=False):
    """The loss, each token's loss, and gradients of x, W and scale, for chunks of `chunk` logits."""
    if chunk:
        head_loss.LOGITS_AT_ONCE, row_parts._CPU_NUMBERS = chunk, chunk // 2
    axis = make_grid(tensor=dist.get_world_size()).tensor
    generator = torch.Generator().manual_seed(3)
    for entries in vocabularies:
        x, weight = (torch.randn(*shape, generator=generator) for shape in ((B, T, D), (entries, D)))
        targets = torch.randint(0, entries, (B, T), generator=generator)
        first, count = entries_here(entries, axis)
        here = slice(first, first + count)
        head = head_loss.VocabularyHead(axis, first, -(-entries // axis.size), compiled)
        for largest in SCALES:
            scale = None if largest is None else largest * torch.rand(entries, generator=generator)
            whole = [None if t is None else t.double().requires_grad_() for t in (x, weight, scale)]
            logits = whole[0] @ whole[1].t() * (1.0 if scale is None else whole[2])
            wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(B, T)
            (3 * wanted.mean()).backward()
            own = [None if t is None else t.clone().requires_grad_() for t in (x, weight[here], None if scale is None else scale[here])]
            loss = head.mean_loss(*own, targets)
            (3 * loss).backward()
            assert loss.dtype == torch.float32 and loss.shape == ()
            torch.testing.assert_close(loss.double(), wanted.mean(), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(head.token_losses(*own, targets).double(), wanted, rtol=1e-6, atol=1e-5)
            if axis.size > 1:
                dist.all_reduce(own[0].grad, group=axis.group)  # as the region's entry does
            for ours, theirs, part in zip(own, whole, (slice(None), here, here), strict=True):
                if ours is not None:
                    torch.testing.assert_close(ours.grad.double(), theirs.grad[part], rtol=1e-4, atol=1e-5 * (largest or 1.0))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_losses_over_a_split_vocabulary(ranks):
    on_ranks(ranks, check)


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_in_chunks_of_a_few_tokens(ranks):
    on_ranks(ranks, check, VOCABULARIES, 10)


def check_bf16(compiled):
    """Every place of the gradient is rounded once, its own target's and those of ranks that have it elsewhere."""
    axis = make_grid(tensor=dist.get_world_size()).tensor
    generator = torch.Generator().manual_seed(6)
    for entries in VOCABULARIES:
        logits = (4 * torch.randn(40, entries, generator=generator)).bfloat16()
        targets = torch.randint(0, entries, (40,), generator=generator)
        first, count = entries_here(entries, axis)
        wanted = (logits.double().softmax(1) - F.one_hot(targets, entries)) / 3
        found = logits[:, first : first + count].clone()
        cross_entropy.losses_and_gradient(found, targets - first, 1 / 3, axis, cross_entropy.passes(compiled))
        torch.testing.assert_close(found.double(), wanted[:, first : first + count], rtol=1.01 * 2**-8, atol=2e-6)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_gradient_over_bf16_logits(ranks, compiled):
    on_ranks(ranks, check_bf16, compiled, seconds=200)


@pytest.mark.heavy
def test_losses_by_compiled_passes():
    on_ranks(3, check, (7, 4), 20, True, seconds=200)


def test_bf16_is_summed_in_fp32(monkeypatch):
    """Over many chunks, the loss and the weight's gradient are no coarser than a bf16 number is."""
    monkeypatch.setattr(head_loss, "LOGITS_AT_ONCE", 64)
    generator = torch.Generator().manual_seed(4)
    x, weight = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((4, 64, D), (32, D)))
    targets = torch.randint(0, 32, (4, 64), generator=generator)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    wanted = F.cross_entropy((exact[0] @ exact[1].t()).flatten(0, 1), targets.flatten())
    wanted.backward()
    own = [t.clone().requires_grad_() for t in (x, weight)]
    head = head_loss.VocabularyHead(Axis(), 0, 32, False)
    loss = head.mean_loss(own[0], own[1], None, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and abs(loss.item() - wanted.item()) < 2e-3
    for ours, theirs in zip(own, exact, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        assert (ours.grad.double() - theirs.grad).norm() < 0.01 * theirs.grad.norm()


def test_one_chunk_of_logits_is_there_at_a_time(monkeypatch):
    """The peak of forward and backward."""
    tokens, entries, chunk = 256, 1024, 1 << 16
    monkeypatch.setattr(head_loss, "LOGITS_AT_ONCE", chunk)
    monkeypatch.setattr(row_parts, "_CPU_NUMBERS", chunk // 16)
    x, weight = torch.randn(1, tokens, 4, requires_grad=True), torch.randn(entries, 4, requires_grad=True)
    head, targets = head_loss.VocabularyHead(Axis(), 0, entries, False), torch.zeros(1, tokens, dtype=torch.int64)
    peak, _ = peak_bytes(lambda: head.mean_loss(x, weight, None, targets).backward())
    assert 4 * chunk < peak < 1.9 * 4 * chunk
