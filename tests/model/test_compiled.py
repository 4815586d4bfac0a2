"""Compiled blocks at depth against eager ones: casts that the compiler fuses away must not cost accuracy.

Both are compared with the same weights in float64: the hidden state before the head, and all gradients of the loss together.
"""

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch._dynamo.utils import counters

from tests.model import equations
from tests.model.small import blueprint, tokens, trained

LAYERS, LENGTH = 24, 32
INPUTS, TARGETS = tokens(2, LENGTH), tokens(2, LENGTH, seed=1)


def model(arch: str, dtype: torch.dtype, compiled: bool = False):
    plan = blueprint(arch, options={"compile": compiled}, layers=LAYERS, hidden=32, ffn=64, context=LENGTH)
    module = trained(plan)
    if arch == "gpt":
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(5)  # initial blocks hardly move h
    return module.to(dtype)


def run(arch: str, dtype: torch.dtype, compiled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden state before the head and the gradients as one vector."""
    module = model(arch, dtype, compiled)
    states = []
    module.layers[-1].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].detach()))
    module(INPUTS, TARGETS).backward()
    return states[0], torch.cat([parameter.grad.flatten().double() for parameter in module.parameters()])


def exact(arch: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from the equations, in float64, of the weights that `dtype` holds."""
    module = model(arch, dtype)
    weights = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    block = equations.block_of(module.blueprint.model)
    h = weights["layers.0.embed_tokens.weight"][INPUTS]
    for layer in range(1, LAYERS + 1):
        h = block(h, equations.below(weights, f"layers.{layer}."))
    head = {"ngpt": equations.ngpt_head, "gpt": equations.gpt_head}[arch]
    logits = head(h, equations.below(weights, f"layers.{LAYERS + 1}."))
    F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten()).backward()
    return h.detach(), torch.cat([weight.grad.flatten() for weight in weights.values()])


def errors(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_compiled_blocks_are_as_exact_as_eager_ones(arch, dtype):
    torch._dynamo.reset()
    counters.clear()
    wanted = exact(arch, dtype)
    eager, compiled = errors(run(arch, dtype, False), wanted), errors(run(arch, dtype, True), wanted)
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"], "nothing, or not all of a block, was compiled"
    assert 0 < max(eager) < (1e-4 if dtype == torch.float32 else 0.2)
    for name, ours, theirs in zip(("hidden state", "gradients"), compiled, eager, strict=True):
        assert ours <= 1.5 * theirs, f"{name}: compiled {ours:.2e}, eager {theirs:.2e}"
    print(f"{arch} {dtype}: hidden state, gradients: eager {eager}, compiled {compiled}")
