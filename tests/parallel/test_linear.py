"""The scale folded into a weight against the scale on the product."""

import pytest
import torch

from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.linear import ColumnParallelLinear, ScaledLinear, linear
from tests.records import record

B, T, D, OUT = 3, 5, 16, 24


def made(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """x, W, scale and the weights of the output in the loss; the scale stays fp32, as learned scales act in it."""
    generator = torch.Generator().manual_seed(1)
    x, weight, given = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((B, T, D), (OUT, D), (B, T, OUT)))
    return [x, weight, 0.2 + 3 * torch.rand(OUT, generator=generator), given]


def scale_on_the_product(x, weight, scale):
    return scale * (x @ weight.t())


def results(function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The value and the gradients by x, W and scale."""
    x, weight, scale = (tensor.clone().requires_grad_() for tensor in inputs[:3])
    y = function(x, weight, scale)
    return [y.detach(), *torch.autograd.grad(y, (x, weight, scale), inputs[3].to(y.dtype))]


def errors(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


def test_float64_equals_plain_autograd():
    inputs = [tensor.double() for tensor in made()]
    value, grad_x, grad_weight, grad_scale = errors(
        results(ScaledLinear.apply, inputs), results(scale_on_the_product, inputs)
    )
    assert max(value, grad_x, grad_weight) < 1e-14
    assert grad_scale < 1e-6  # the scale's gradient is summed in fp32


def test_float32_equals_float64():
    exact = results(scale_on_the_product, [tensor.double() for tensor in made()])
    assert max(errors(results(ScaledLinear.apply, made()), exact)) < 1e-6


def test_bf16_errs_no_more_than_the_scale_on_the_product():
    inputs = made(torch.bfloat16)
    exact = results(scale_on_the_product, [tensor.double() for tensor in inputs])
    folded = results(ScaledLinear.apply, inputs)
    assert [tensor.dtype for tensor in folded] == [torch.bfloat16] * 3 + [torch.float32]
    unfolded = results(lambda x, weight, scale: scale.to(torch.bfloat16) * (x @ weight.t()), inputs)
    for found, plain in zip(errors(folded, exact), errors(unfolded, exact), strict=True):
        assert found < plain < 4e-3  # 2^-8: about one rounding to bf16


def test_a_column_parallel_layer_takes_x_of_any_dtype():
    layer = ColumnParallelLinear(record((OUT, D), 0), Axis()).bfloat16()
    layer.weight.data = made()[1].bfloat16()
    x = made()[0]
    assert torch.equal(layer(x), x.bfloat16() @ layer.weight.t())
    assert torch.equal(linear(x, layer.weight, made()[2]), ScaledLinear.apply(x.bfloat16(), layer.weight, made()[2]))


def test_outputs_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="24 does not divide over 5 tensor ranks"):
        ColumnParallelLinear(record((OUT, D), 0), Axis(0, 5))
