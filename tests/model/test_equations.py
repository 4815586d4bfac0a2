"""Every part of a block against its equation as written, in float64: values and the gradients of all that is learned."""

import math
from functools import partial

import pytest
import torch

from megatron_ngpt.config.recipe import Scales
from megatron_ngpt.model.attention import causal_attention
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.scales import effective
from megatron_ngpt.model.window import window_of
from megatron_ngpt.parallel.document_attention import document_attention
from megatron_ngpt.parallel.documents import documents_of
from tests.model import equations
from tests.model.equations import norm, softmax_attention
from tests.model.small import SHAPE, blueprint, tokens, trained

B, T, D = 2, 10, SHAPE["hidden"]
H, G, K = SHAPE["heads"], SHAPE["kv_heads"], SHAPE["hidden"] // SHAPE["heads"]
LAST = SHAPE["layers"] + 1
PARTS = {
    "ngpt block, lerp": ("ngpt", {}, lambda m: m.layers[1], equations.block_of),
    "ngpt block, slerp": ("ngpt", {"update": "slerp"}, lambda m: m.layers[1], equations.block_of),
    "ngpt attention": ("ngpt", {}, lambda m: m.layers[1].self_attn, lambda _: equations.ngpt_attention),
    "ngpt feed-forward": ("ngpt", {}, lambda m: m.layers[1].mlp, lambda _: equations.ngpt_feed_forward),
    "ngpt head": ("ngpt", {}, lambda m: m.layers[LAST], lambda _: equations.ngpt_head),
    "gpt block": ("gpt", {}, lambda m: m.layers[1], equations.block_of),
    "gpt head": ("gpt", {}, lambda m: m.layers[LAST], lambda _: equations.gpt_head),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_equals_its_equation_in_value_and_gradients(name):
    arch, keys, choose, equation_of = PARTS[name]
    plan = blueprint(arch, **keys)
    part, equation = choose(trained(plan)), equation_of(plan.model)
    if arch == "gpt":
        part = part.apply(enlarge)
    generator = torch.Generator().manual_seed(7)
    h = norm(torch.randn(B, T, D, generator=generator, dtype=torch.float64))
    ours, theirs = h.float().requires_grad_(), h.requires_grad_()
    used = [(n, p) for n, p in part.named_parameters() if "alpha" not in n or "block" in name]  # α is the block's business
    weights = {n: p.detach().double().requires_grad_() for n, p in used}
    window = [window_of(plan, T, None, part)] if "block" in name or "attention" in name else []
    found, wanted = part(ours, *window), equation(theirs, weights)
    given = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    (found * given).sum().backward()
    (wanted * given).sum().backward()
    assert relative_error(found.detach(), wanted.detach()) < 2e-6
    assert relative_error(ours.grad, theirs.grad) < 1e-5
    for parameter, tensor in weights.items():
        assert relative_error(part.get_parameter(parameter).grad, tensor.grad) < 1e-5, parameter


def enlarge(module):
    """The baseline's weights of deviation 0.02 leave nothing but the residual to compare."""
    for parameter in module.parameters(recurse=False):
        if parameter.ndim == 2:
            parameter.data.mul_(10)


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def test_the_embedding_looks_up_rows_on_the_sphere():
    module = trained(blueprint())
    inputs = tokens(B, T)
    h = module.layers[0](inputs)
    assert torch.equal(h, module.layers[0].embed_tokens.weight[inputs])
    assert (h.norm(dim=-1) - 1).abs().max() < 1e-6


def block_and_window(update):
    block = trained(blueprint(update=update)).layers[1]
    return block, window_of(block.blueprint, T, None, block)


@pytest.mark.parametrize("update", ["lerp", "slerp"])
def test_alpha_zero_leaves_h(update):
    block, window = block_and_window(update)
    torch.nn.init.zeros_(block.self_attn.alpha)
    torch.nn.init.zeros_(block.mlp.alpha)
    h = norm(torch.randn(B, T, D, generator=torch.Generator().manual_seed(7)))
    assert (block(h, window) - h).abs().max() < 1e-6


@pytest.mark.parametrize("update", ["lerp", "slerp"])
def test_alphas_sign_does_not_count_and_h_stays_on_the_sphere(update):
    block, window = block_and_window(update)
    h = norm(torch.randn(B, T, D, generator=torch.Generator().manual_seed(7)))
    out = block(h, window)
    block.self_attn.alpha.data.neg_()
    block.mlp.alpha.data.neg_()
    assert torch.equal(block(h, window), out)
    assert (out.norm(dim=-1) - 1).abs().max() < 1e-6 and (out - h).abs().max() > 1e-3


# Attention alone.


def test_grouped_queries_equal_repeated_heads():
    q, k, v = (torch.randn(B, T, heads, K, generator=torch.Generator().manual_seed(s)) for s, heads in enumerate((H, G, G)))
    repeated = [x.repeat_interleave(H // G, 2) for x in (k, v)]
    documents = torch.tensor([[0] * 4 + [1] * 6, [0] * 10])
    for attend in (causal_attention, partial(document_attention, documents=documents_of(documents, documents.device))):
        grouped = attend(q, k, v, 0.7)
        torch.testing.assert_close(grouped, attend(q, *repeated, 0.7), rtol=0, atol=3e-6)
    exact = softmax_attention(q.double(), *(x.double() for x in repeated), 0.7)  # the second row is one document
    torch.testing.assert_close(grouped[1].double(), exact[1], rtol=0, atol=3e-6)


def test_a_token_sees_its_own_documents_past_alone():
    q, k, v = (torch.randn(1, T, H, K, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in range(3))
    documents = documents_of(torch.tensor([[0] * 4 + [1] * 6]), q.device)
    for token in range(T):
        grad = torch.autograd.grad(document_attention(q, k, v, 1.0, documents)[0, token].sum(), v)[0]
        seen = grad[0].abs().sum((1, 2)).nonzero().flatten().tolist()
        assert seen == list(range(0 if token < 4 else 4, token + 1))


# Scales.


def test_stored_scales_start_at_their_scale_and_effective_ones_at_their_init():
    inits = {"alpha": (0.03, 0.5), "qk": (1.5, 0.25), "up": (2.0, 4.0), "gate": (0.5, 0.125), "logit": (3.0, 0.1)}
    scales = Scales.model_validate({name: {"init": init, "scale": scale} for name, (init, scale) in inits.items()})
    defaults = {name: (init, 1 / math.sqrt(D)) for name, init in (("alpha", 0.05), ("qk", 1.0), ("logit", 1.0))}
    defaults |= {"up": (1.0, 1.0), "gate": (1.0, 1.0)}
    for module, wanted in ((trained(blueprint(scales=scales), spread=0), inits), (trained(blueprint(), spread=0), defaults)):
        block, head = module.layers[1], module.layers[LAST]
        attention, mlp = block.self_attn, block.mlp
        found = [("alpha", attention.alpha), ("alpha", mlp.alpha), ("qk", attention.qk_scale), ("up", mlp.up_scale),
                 ("gate", mlp.gate_scale), ("logit", head.logit_scale)]  # fmt: skip
        for name, stored in found:
            init, scale = wanted[name]
            torch.testing.assert_close(stored.detach(), torch.full_like(stored, scale))
            torch.testing.assert_close(effective(stored).detach(), torch.full_like(stored, init))


def test_effective_is_stored_times_init_over_scale():
    alpha = trained(blueprint()).layers[1].mlp.alpha
    torch.testing.assert_close(effective(alpha), alpha * 0.05 * math.sqrt(D))
    alpha.data = alpha.data.bfloat16()
    assert effective(alpha).dtype == torch.float32


def test_shapes_of_the_learned_scales():
    shapes = {p.placement.record.name.split(".", 3)[-1]: tuple(p.placement.shape) for p in Decoder(blueprint()).layers[1].parameters()}
    assert {name: shape for name, shape in shapes.items() if not name.endswith("weight")} == {
        "self_attn.qk_scale": (G, K), "self_attn.alpha": (D,), "mlp.alpha": (D,), "mlp.up_scale": (40,), "mlp.gate_scale": (40,)
    }  # fmt: skip
