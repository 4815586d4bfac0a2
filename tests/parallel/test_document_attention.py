"""Attention within documents as one operator: by rectangles, and by the one kernel that GPUs have, for which rectangles stand in here."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import varlen

from megatron_ngpt.parallel import document_attention as module
from megatron_ngpt.parallel.attention_blocks import attend, attend_backward
from megatron_ngpt.parallel.documents import document_runs, documents_of
from megatron_ngpt.parallel.ring import _backward_in_graph, _in_graph

CPU = torch.device("cpu")
BATCHES = torch.tensor([[[0] * 3 + [1] * 7, [4] * 10], [[0] * 10, [0] + [1] + [2] * 8]])
SCALE = 0.5


def head_first(x_NHK: torch.Tensor) -> torch.Tensor:
    return x_NHK.transpose(0, 1).unsqueeze(0)


def forward_kernel(q, k, v, starts, starts_k, longest, longest_k, *, return_aux, scale, window_size, enable_gqa):
    """As `varlen_attn`, one document after another."""
    told(q, k, starts, starts_k, longest, longest_k)
    assert return_aux.lse and window_size == (-1, 0) and enable_gqa
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], len(q))
    for start, stop in pairwise(starts.tolist()):
        found = attend(*(head_first(x[start:stop]) for x in (q, k, v)), True, scale)
        out[start:stop], lse[:, start:stop] = found[0][0].transpose(0, 1), found[1][0]
    return out, lse


def backward_kernel(grad, q, k, v, out, lse, starts, starts_k, longest, longest_k, causal, seed, scale, window_size):
    """As torch's own for `varlen_attn`."""
    told(q, k, starts, starts_k, longest, longest_k)
    assert causal and seed.tolist() == [0, 0] and window_size == [-1, 0]
    grads = [torch.empty_like(x) for x in (q, k, v)]
    for start, stop in pairwise(starts.tolist()):
        parts = (head_first(x[start:stop]) for x in (grad, q, k, v, out))
        for into, part in zip(grads, attend_backward(*parts, lse[None, :, start:stop], True, scale), strict=True):
            into[start:stop] = part[0].transpose(0, 1)
    return tuple(grads)


def told(q, k, starts, starts_k, longest, longest_k) -> None:
    assert starts is starts_k and longest == longest_k == max(b - a for a, b in pairwise(starts.tolist()))
    assert (starts[0], starts[-1], starts.dtype, q.ndim, k.ndim) == (0, len(q), torch.int32, 3, 3)


@pytest.fixture
def one_kernel(monkeypatch):
    monkeypatch.setattr(module, "_has_one_kernel", lambda q_BTHK: True)
    monkeypatch.setattr(varlen, "varlen_attn", forward_kernel)
    monkeypatch.setattr(varlen, "_varlen_attn_backward", backward_kernel)


def inputs() -> list[torch.Tensor]:
    """q, k, v of 4 query and 2 key/value heads, k and v parts of one tensor as after an exchange of heads; the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    q, grad, kv = (torch.randn(2, 10, 4, 8, generator=generator) for _ in range(3))
    return [q, kv[:, :, :2], kv[:, :, 2:], grad]


def found(attention, numbers_BT: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of q, k, v."""
    *qkv, grad = inputs()
    qkv = [x.requires_grad_() for x in qkv]
    out = attention(*qkv, SCALE, documents_of(numbers_BT, CPU))
    return [out.detach(), *torch.autograd.grad(out, qkv, grad)]


def test_documents_have_one_shape_and_their_runs():
    """Equal numbers at the end of one row and the start of the next are two documents."""
    for batch, runs in zip(BATCHES, ([[(0, 3), (3, 10)], [(0, 10)]], [[(0, 10)], [(0, 1), (1, 2), (2, 10)]]), strict=True):
        documents = documents_of(batch, CPU)
        assert documents.bounds.shape == (21,) and document_runs(documents.bounds, 10) == runs


def test_one_kernel_equals_rectangles(one_kernel, monkeypatch):
    kernel = [found(module.document_attention, batch) for batch in BATCHES]
    monkeypatch.undo()
    for ours, batch in zip(kernel, BATCHES, strict=True):
        for x, wanted in zip(ours, found(module.document_attention, batch), strict=True):
            torch.testing.assert_close(x, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", [False, True], ids=["rectangles", "one kernel"])
def test_a_graph_serves_all_documents(kernel, request):
    if kernel:
        request.getfixturevalue("one_kernel")
    torch._dynamo.reset()
    compiled = torch.compile(module.document_attention, backend="aot_eager", fullgraph=True)
    for count, batch in enumerate(BATCHES):
        with torch._dynamo.config.patch(error_on_recompile=count > 0):
            for ours, eager in zip(found(compiled, batch), found(module.document_attention, batch), strict=True):
                assert torch.equal(ours, eager)


def test_operators_are_what_their_fakes_say(one_kernel):
    """Schema, shapes, strides, and gradients where they have any."""
    q, k, v, grad = inputs()
    documents = documents_of(BATCHES[0], CPU)
    flat = SimpleNamespace(**{name: x.flatten(0, 1) for name, x in zip("qkvg", (q, k, v, grad), strict=True)})
    out, lse = module._in_one_kernel(flat.q, flat.k, flat.v, *documents, SCALE)
    of_blocks = _in_graph(q, k, v, documents.bounds, SCALE, "")
    for operator, arguments in (
        (module._in_one_kernel, (flat.q.requires_grad_(), flat.k, flat.v, *documents, SCALE)),
        (module._backward_in_one_kernel, (flat.g, flat.q.detach(), flat.k, flat.v, out, lse, *documents, SCALE)),
        (_in_graph, (q, k, v, documents.bounds, SCALE, "")),
        (_in_graph, (q, k, v, None, SCALE, "")),
        (_backward_in_graph, (grad, q, k, v, *of_blocks, documents.bounds, SCALE, "")),
    ):
        torch.library.opcheck(operator, arguments)
