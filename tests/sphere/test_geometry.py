"""Norm, and the two steps on the sphere, against the formulas in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.sphere.geometry import inverse_norm, lerp_step, slerp_step, unit
from megatron_ngpt.sphere.steps import slerp_towards

D = 32
TINY = (0.0, 1e-8, 1e-5, 1e-4, 1e-3, 1.4e-3, 1.5e-3, 3e-3)


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def lerp_formula(h, target, rates):
    return normed(h + rates * (target - h))


def slerp_formula(h, target, rates):
    angle = torch.acos((h * target).sum(-1, keepdim=True))
    return normed((torch.sin((1 - rates) * angle) * h + torch.sin(rates * angle) * target) / torch.sin(angle))


STEPS = {"lerp": (lerp_step, lerp_formula), "slerp": (slerp_step, slerp_formula)}


def apart(angle: float, seed: int = 0, points: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points h on the sphere, targets at `angle` from them, and rates of either sign's size up to 1; float64."""
    generator = torch.Generator().manual_seed(seed)
    h, aside = normed(torch.randn(2, points, D, generator=generator, dtype=torch.float64))
    aside = normed(aside - (aside * h).sum(-1, keepdim=True) * h)
    rates = torch.rand(D, generator=generator, dtype=torch.float64)
    return h, math.cos(angle) * h + math.sin(angle) * aside, rates


def with_gradients(step, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The point reached, and the gradients of one fixed weighting of it by each input (h, target, rates).

    Of points on the sphere the part along the sphere: what remains is lost in the norm that made the point.
    """
    inputs = [x.clone().requires_grad_() for x in inputs]
    reached = step(*inputs)
    weights = torch.randn(reached.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(reached.dtype)
    gradients = torch.autograd.grad((reached * weights).sum(), inputs)
    return [reached.detach(), *(along_sphere(x.detach(), g) for x, g in zip(inputs, gradients, strict=True))]


def along_sphere(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return gradient if x.ndim == 1 else gradient - (gradient * x).sum(-1, keepdim=True) * x


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", STEPS)
@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, math.pi - 0.2), st.integers(0, 1000))
def test_step_equals_its_formula_in_value_and_gradient(name, angle, seed):
    step, formula = STEPS[name]
    inputs = apart(angle, seed)
    found = with_gradients(step, *(x.float() for x in inputs))
    wanted = with_gradients(formula, *inputs)
    assert relative_error(found[0], wanted[0]) < 1e-5
    for a, b in zip(found[1:], wanted[1:], strict=True):
        assert relative_error(a, b) < 1e-5 + 1e-6 / angle


@settings(deadline=None, max_examples=40)
@given(st.floats(0, math.pi - 0.2), st.floats(0, 1), st.integers(0, 1000))
def test_slerp_with_one_rate_moves_by_that_share_of_the_angle(angle, rate, seed):
    h, target, _ = apart(angle, seed)
    reached = slerp_step(h.float(), target.float(), torch.full((D,), rate)).double()
    wanted = math.cos(rate * angle) * h + (math.sin(rate * angle) * (target - math.cos(angle) * h) / math.sin(angle)
                                           if angle > 1e-6 else 0)
    assert (reached - wanted).abs().max() < 3e-5


SLERPS = {"plain": slerp_step, "for training": lambda h, target, rates: slerp_towards(h, target, rates, h)}


@pytest.mark.parametrize("slerp", SLERPS)
@pytest.mark.parametrize("from_where", ["near h", "near −h"])
@pytest.mark.parametrize("angle", TINY)
@pytest.mark.parametrize("rate", [None, 0.0, 0.05, 0.5, 1.0])
def test_slerp_is_finite_at_both_ends_of_the_great_circle(from_where, angle, rate, slerp):
    h, target, rates = apart(angle)
    if rate is not None:
        rates = torch.full_like(rates, rate)
    target = target if from_where == "near h" else -target
    reached, *gradients = with_gradients(SLERPS[slerp], h.float(), target.float(), rates.float())
    assert torch.isfinite(reached).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    if rate != 0.5 or from_where == "near h":  # halfway to the antipode there is no direction
        torch.testing.assert_close(reached.norm(dim=-1), torch.ones(len(reached)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("slerp", SLERPS)
@pytest.mark.parametrize("angle", TINY)
def test_slerp_joins_its_limit_without_a_jump(angle, slerp):
    """For θ → 0 the coefficients tend to 1 − α and α: the step is lerp's."""
    inputs = apart(angle)
    found = with_gradients(SLERPS[slerp], *(x.float() for x in inputs))
    wanted = with_gradients(lerp_formula, *inputs)
    assert relative_error(found[0], wanted[0]) < 1e-6
    for a, b in zip(found[1:3], wanted[1:3], strict=True):
        assert relative_error(a, b) < 3e-4


def test_slerp_takes_exactly_equal_and_opposite_points():
    h = apart(0)[0].float()
    rates = torch.full((D,), 0.3)
    assert (slerp_step(h, h, rates) - h).abs().max() < 1e-6
    assert torch.isfinite(slerp_step(h, -h, rates)).all()


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("angle", [0.0, 0.3, 2.0])
def test_rates_of_zero_and_one_stay_and_arrive(name, angle):
    step = STEPS[name][0]
    h, target, _ = (x.float() for x in apart(angle))
    assert (step(h, target, torch.zeros(D)) - h).abs().max() < 1e-6
    assert (step(h, target, torch.ones(D)) - target).abs().max() < 1e-6


def test_unit_and_inverse_norm():
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 100
    assert relative_error(unit(x.float()), normed(x)) < 1e-6
    assert relative_error(inverse_norm(x.float()), 1 / x.norm(dim=-1, keepdim=True)) < 1e-6
    x.requires_grad_()
    y = x.detach().float().requires_grad_()
    weights = torch.arange(D, dtype=torch.float64)
    (normed(x) * weights).sum().backward()
    (unit(y) * weights).sum().backward()
    assert relative_error(y.grad, x.grad) < 1e-5


@pytest.mark.parametrize("name", ["unit", "inverse_norm", *STEPS])
def test_bf16_comes_in_and_fp32_comes_out(name):
    def step(x):
        if name in STEPS:
            return STEPS[name][0](x, x.flip(-1), x.float())
        return {"unit": unit, "inverse_norm": inverse_norm}[name](x)

    x = torch.randn(2, 4096, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert step(x).dtype == torch.float32
    torch.testing.assert_close(step(x), step(x.float()), rtol=0, atol=0)  # nothing was summed or rounded in bf16


def test_norm_of_nothing_is_nothing_and_finite():
    x = torch.zeros(2, D, requires_grad=True)
    reached = unit(x)
    reached.sum().backward()
    assert not reached.any() and torch.isfinite(x.grad).all()
