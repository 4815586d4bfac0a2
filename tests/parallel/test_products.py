"""Products with a weight against plain autograd, held both ways, with and without the scale; and that layers multiply nowhere else."""

import re
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import megatron_ngpt
from benchmarks.machine import peak_bytes
from megatron_ngpt.parallel import row_parts
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.linear import ColumnParallelLinear
from megatron_ngpt.parallel.products import fold, product, product_scaled_later, unfold_gradient
from tests.records import record
from tests.worst import worst

B, T, D, OUT = 3, 5, 16, 24


def made(dtype: torch.dtype = torch.float32, transposed: bool = False) -> list[torch.Tensor]:
    """x, W, scale and the weights of the output in the loss; the scale stays fp32, as learned scales act in it."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((B, T, OUT if transposed else D), (OUT, D), (B, T, D if transposed else OUT))
    x, weight, given = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return [x, weight, 0.2 + 3 * torch.rand(OUT, generator=generator), given]


def scale_outside(x, weight, scale, transposed=False):
    return (x * scale) @ weight if transposed else scale * (x @ weight.t())


def results(function, inputs: list[torch.Tensor], transposed: bool = False) -> list[torch.Tensor]:
    """The value and the gradients by x, W and scale."""
    x, weight, scale = (tensor.clone().requires_grad_() for tensor in inputs[:3])
    y = function(x, weight, scale, transposed)
    return [y.detach(), *torch.autograd.grad(y, (x, weight, scale), inputs[3].to(y.dtype))]


def errors(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("transposed", [False, True])
def test_float64_equals_plain_autograd(transposed):
    inputs = [tensor.double() for tensor in made(transposed=transposed)]
    value, grad_x, grad_weight, grad_scale = errors(results(product, inputs, transposed), results(scale_outside, inputs, transposed))
    assert worst([value, grad_x, grad_weight]) < 1e-14
    assert grad_scale < 1e-6  # the scale's gradient is summed in fp32


@pytest.mark.parametrize("transposed", [False, True])
def test_float32_equals_float64(transposed):
    inputs = made(transposed=transposed)
    exact = results(scale_outside, [tensor.double() for tensor in inputs], transposed)
    assert worst(errors(results(product, inputs, transposed), exact)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_without_a_scale_it_is_torchs_own_product(dtype, transposed):
    inputs = made(dtype, transposed)
    one = torch.ones(())

    def ours(x, weight, scale, transposed):
        return product(x, weight, transposed=transposed) + 0 * scale.sum().to(dtype)

    def torchs(x, weight, scale, transposed):
        return (x @ weight if transposed else x @ weight.t()) + 0 * scale.sum().to(dtype)

    inputs[2] = one
    for found, wanted in zip(results(ours, inputs, transposed), results(torchs, inputs, transposed), strict=True):
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(product(inputs[0], inputs[1], transposed=transposed), torchs(*inputs[:3], transposed))


def test_bf16_errs_no_more_than_the_scale_on_the_product():
    inputs = made(torch.bfloat16)
    exact = results(scale_outside, [tensor.double() for tensor in inputs])
    folded = results(product, inputs)
    assert [tensor.dtype for tensor in folded] == [torch.bfloat16] * 3 + [torch.float32]
    unfolded = results(lambda x, weight, scale, _: scale.to(torch.bfloat16) * (x @ weight.t()), inputs)
    for found, plain in zip(errors(folded, exact), errors(unfolded, exact), strict=True):
        assert found < plain < 4e-3  # 2^-8: about one rounding to bf16


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("numbers", [1, 5 * D, 1 << 17], ids=["a row", "parts that do not divide", "whole"])
def test_scaled_later_all_gradients_are_the_same(dtype, limit, numbers, monkeypatch):
    monkeypatch.setattr(row_parts, "_CPU_NUMBERS", numbers)
    inputs = made(dtype)
    exact = results(scale_outside, [tensor.double() for tensor in inputs])
    found = results(lambda x, weight, scale, _: product_scaled_later(x, weight, scale) * scale.detach(), inputs)
    assert worst(errors(found, exact)) < limit


def test_a_scale_of_zero_has_a_finite_gradient():
    x, weight, _, given = made()
    zero = torch.zeros(OUT, requires_grad=True)
    (product_scaled_later(x, weight.requires_grad_(), zero) * zero.detach()).backward(given)
    assert torch.equal(zero.grad, torch.zeros(OUT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", [1, 5 * D, 1 << 17], ids=["a row", "parts that do not divide", "whole"])
def test_rows_at_a_time_are_the_same_bits(dtype, numbers, monkeypatch):
    monkeypatch.setattr(row_parts, "_CPU_NUMBERS", numbers)
    _, weight, scale, _ = made(dtype)
    grad = weight.flip(0) / 3
    assert torch.equal(fold(weight, scale), (weight * scale.unsqueeze(1)).to(dtype))
    grad_weight, grad_scale = unfold_gradient(grad.clone(), weight, scale)
    assert torch.equal(grad_weight, (grad * scale.unsqueeze(1)).to(dtype))
    assert torch.equal(grad_scale, (grad.float() * weight).sum(1))


def test_folding_makes_no_second_weight():
    weight, scale = torch.zeros(32768, 512, dtype=torch.bfloat16), torch.zeros(32768)
    grad = weight.float()
    for work in (lambda: fold(weight, scale), lambda: unfold_gradient(grad, weight, scale)):
        assert peak_bytes(work)[0] < 1.4 * weight.nbytes  # the result, the scale's gradient, and temporaries of some rows


@pytest.mark.parametrize("compiled", [False, True])
def test_the_folded_weight_is_not_kept_for_backward(compiled):
    x, weight, scale, given = (tensor.requires_grad_() for tensor in made(torch.bfloat16))
    kept = {}
    with saved_tensors_hooks(lambda tensor: kept.setdefault(tensor.data_ptr(), tensor), lambda tensor: tensor):
        y = (torch.compile(product) if compiled else product)(x, weight, scale)
    assert {tuple(t.shape) for at, t in kept.items() if at != weight.data_ptr()} <= {(B, T, D), (B * T, D), (OUT,), (OUT, 1)}
    y.backward(given)
    assert torch.equal(x.grad, given.detach() @ fold(weight.detach(), scale.detach()))


@pytest.mark.parametrize("tokens", [1, 100])
@pytest.mark.parametrize("transposed", [False, True])
def test_without_gradients_few_tokens_or_many_the_value_is_the_same(tokens, transposed):
    x, weight, scale, _ = made(transposed=transposed)
    x = x[:1, :1].expand(1, tokens, -1)
    with torch.no_grad():
        torch.testing.assert_close(product(x, weight, scale, transposed), scale_outside(x, weight, scale, transposed))


def test_a_column_parallel_layer_takes_x_of_any_dtype():
    layer = ColumnParallelLinear(record((OUT, D), 0), Axis()).bfloat16()
    layer.weight.data = made()[1].bfloat16()
    x = made()[0]
    assert torch.equal(layer(x), x.bfloat16() @ layer.weight.t())


def test_outputs_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="24 does not divide over 5 tensor ranks"):
        ColumnParallelLinear(record((OUT, D), 0), Axis(0, 5))


MULTIPLIES = re.compile(r"(\s@\s|\blinear\(|\b(mm|matmul|einsum|addmm)\().*\b(weight|folded)")


def test_weights_are_multiplied_nowhere_else():
    package = Path(megatron_ngpt.__file__).parent
    files = [file for room in ("parallel", "model") for file in (package / room).glob("*.py") if file.name != "products.py"]
    assert len(files) > 15
    found = [f"{file.name}: {line.strip()}" for file in files for line in file.read_text().splitlines() if MULTIPLIES.search(line)]
    assert found == []
    assert MULTIPLIES.search((package / "parallel" / "products.py").read_text())
