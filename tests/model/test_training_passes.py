"""The pointwise chains of a block as training makes them, some rows at a time with derivatives of their own, against autograd of the plain
formulas in float64; what they keep; and that without gradients they are the plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.query_key import to_sphere
from megatron_ngpt.model.rotary import rotation_table
from megatron_ngpt.model.swiglu import swiglu
from megatron_ngpt.parallel import row_parts
from megatron_ngpt.sphere.steps import lerp_towards, slerp_towards
from tests.model.equations import norm, slerp
from tests.worst import worst

B, T, H, K, D = 2, 7, 3, 4, 12
TABLE = rotation_table(T, Model(hidden=D, heads=H, context=T), torch.device("cpu"))
OF_EACH_SAMPLE = tuple(torch.stack((table, table.flip(0))) for table in TABLE)


def rotated(x, cos, sin):
    """By a table: the halves swapped, the sine negative in the first."""
    first, second = x.chunk(2, -1)
    return x * cos.unsqueeze(-2) + torch.cat((second, first), -1) * sin.unsqueeze(-2)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SCALES = (normal(D, seed=4).float(), normal(D, seed=5).float())  # of u and g, constants to the pass
PASSES = {  # ours, the formula, what both are given
    "step": (
        lambda h, out, rates: lerp_towards(h, out, rates, h.to(out.dtype)),
        lambda h, out, rates: norm(h + rates * (norm(out) - h)),
        lambda: (norm(normal(B, T, D)), 5 * normal(B, T, D, seed=1), 0.1 + normal(D, seed=2).abs()),
    ),
    "slerp": (
        lambda h, out, rates: slerp_towards(h, out, rates, h.to(out.dtype)),
        lambda h, out, rates: slerp(h, norm(out), rates),
        lambda: (norm(normal(B, T, D)), 5 * normal(B, T, D, seed=1), 0.1 + normal(D, seed=2).abs()),
    ),
    "queries": (
        lambda x, scale: to_sphere(x, *TABLE, scale),
        lambda x, scale: scale * norm(rotated(x, *TABLE)),
        lambda: (3 * normal(B, T, H, K), normal(H, K, seed=1).index_fill(1, torch.tensor(2), 0)),  # a scale may be 0
    ),
    "keys, in documents": (
        lambda x: to_sphere(x, *OF_EACH_SAMPLE, None),
        lambda x: norm(rotated(x, *OF_EACH_SAMPLE)),
        lambda: (3 * normal(B, T, H, K),),
    ),
    "scaled swiglu": (
        lambda u, g: swiglu(u, g, *SCALES),
        lambda u, g: SCALES[0] * u * F.silu(SCALES[1] * g),
        lambda: (normal(B, T, D), 2 * normal(B, T, D, seed=1)),
    ),
    "swiglu": (swiglu, lambda u, g: u * F.silu(g), lambda: (normal(B, T, D), 2 * normal(B, T, D, seed=1))),
}
ACTS_IN_FP32 = {"step": (0, 2), "slerp": (0, 2), "queries": (1,)}  # of the inputs: the hidden state and learned scales


def inputs_of(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Which `dtype` holds exactly, but for those that stay in fp32."""
    fp32 = ACTS_IN_FP32.get(name, ())
    return [x.to(torch.float32 if place in fp32 else dtype).requires_grad_() for place, x in enumerate(PASSES[name][2]())]


def with_gradients(function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    y = function(*inputs)
    given = normal(*y.shape, seed=3).to(y.dtype).transpose(0, 1).contiguous().transpose(0, 1)  # a gradient that is not contiguous
    return [y.detach(), *torch.autograd.grad(y, inputs, given)]


def errors(name: str, dtype: torch.dtype) -> list[float]:
    ours, formula, _ = PASSES[name]
    inputs = inputs_of(name, dtype)
    exact = with_gradients(formula, [x.detach().double().requires_grad_() for x in inputs])
    found = with_gradients(ours, inputs)
    assert [x.dtype for x in found] == [inputs[0].dtype, *(x.dtype for x in inputs)]
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("numbers", [1, 5 * D, 1 << 17], ids=["a row", "parts that do not divide", "whole"])
@pytest.mark.parametrize("name", PASSES)
def test_values_and_gradients_are_the_formulas(name, numbers, monkeypatch):
    monkeypatch.setattr(row_parts, "_CPU_NUMBERS", numbers)
    assert worst(errors(name, torch.float32)) < 1e-6
    assert worst(errors(name, torch.bfloat16)) < 6e-3  # one or two roundings to bf16


@pytest.mark.parametrize("name", PASSES)
def test_nothing_is_kept_but_what_others_keep_anyway(name):
    inputs = inputs_of(name, torch.float32)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        result = PASSES[name][0](*inputs)
    there = [result] if name.startswith("keys") else inputs
    read = {x.data_ptr() for x in (*there, *TABLE, *OF_EACH_SAMPLE, *SCALES)}
    assert all(tensor.data_ptr() in read or tensor.numel() in (B * T, B * T * H) for tensor in kept)  # beside them norms


@pytest.mark.parametrize("name", PASSES)
def test_without_gradients_values_are_the_same_and_forward_derivatives_exist(name):
    inputs = inputs_of(name, torch.float32)
    trained = PASSES[name][0](*inputs).detach()
    plain = [x.detach() for x in inputs]
    with torch.no_grad():
        value, moved = torch.func.jvp(lambda x: PASSES[name][0](x, *plain[1:]), (plain[0],), (torch.ones_like(plain[0]),))
    torch.testing.assert_close(value, trained)
    wanted = torch.func.jvp(lambda x: PASSES[name][1](x, *plain[1:]), (plain[0],), (torch.ones_like(plain[0]),))[1]
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-5)


def test_the_zero_vector_has_finite_gradients():
    x, rates = torch.zeros(1, 1, H, K, requires_grad=True), torch.ones(D)
    to_sphere(x, *(table[:1] for table in TABLE), None).sum().backward()
    h, out = norm(normal(1, D)).float().requires_grad_(), torch.zeros(1, D, requires_grad=True)
    for towards in (lerp_towards, slerp_towards):
        towards(h, out, rates / 2, h).sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (x, h, out))
