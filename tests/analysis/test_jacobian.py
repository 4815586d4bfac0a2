"""Extreme singular values of Jacobians by products alone, beside dense Jacobians of tiny models."""

from itertools import islice

import numpy as np
import pytest
import torch

from megatron_ngpt.analysis.function import Network
from megatron_ngpt.analysis.jacobian import extremes, golub_kahan, last_of
from megatron_ngpt.analysis.weights import Weights
from tests.checkpoint.trained import make_model, save_run

TOKENS = torch.tensor([3, 14, 15, 9])


@pytest.fixture(scope="module", params=["ngpt", "gpt", "slerp"])
def network(request, tmp_path_factory):
    changes = {"arch": "ngpt", "update": "slerp"} if request.param == "slerp" else {"arch": request.param}
    path = tmp_path_factory.mktemp(request.param)
    return Network(Weights(save_run(path, make_model(**changes)), request.param), TOKENS)


def dense(network: Network, numbers: range) -> np.ndarray:
    """Singular values of the whole Jacobian between bases of the tangent spaces, falling, by backward derivatives of an entry each."""
    states = network.states

    def function(h_TD):
        for number in numbers:
            h_TD = network.block(number)(h_TD)
        return h_TD

    size = states[0].numel()
    jacobian = torch.autograd.functional.jacobian(function, states[numbers.start]).reshape(size, size).double()
    if network.spherical:
        jacobian = tangent_basis(states[numbers.stop]).t() @ jacobian @ tangent_basis(states[numbers.start])
    assert min(jacobian.shape) == network.size
    return np.linalg.svd(jacobian.numpy(), compute_uv=False)


def tangent_basis(h_TD: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns, [T D, T (D − 1)]."""
    complements = [torch.linalg.qr(h.double().unsqueeze(1), mode="complete").Q[:, 1:] for h in h_TD]
    return torch.block_diag(*complements)


@pytest.mark.parametrize("block", [0, 1, None])
def test_with_all_steps_they_are_the_dense_jacobians(network, block, monkeypatch):
    monkeypatch.setattr("megatron_ngpt.analysis.jacobian.NEAR", -1.0)  # never near enough to end
    wanted = dense(network, range(2) if block is None else range(block, block + 1))
    found = extremes(network, block, steps=1000)
    assert found.exact and found.steps == network.size
    np.testing.assert_allclose([found.largest, found.smallest], [wanted[0], wanted[-1]], rtol=1e-3)


def test_few_steps_bound_from_inside(network, monkeypatch):
    monkeypatch.setattr("megatron_ngpt.analysis.jacobian.NEAR", -1.0)
    wanted, before = dense(network, range(2)), None
    for steps in (4, 12, 30):
        found = extremes(network, None, steps)
        assert not found.exact and found.steps == steps
        assert found.largest <= wanted[0] * (1 + 1e-4) and found.smallest >= wanted[-1] * (1 - 1e-4)
        for value, residual in ((found.largest, found.largest_residual), (found.smallest, found.smallest_residual)):
            assert np.abs(wanted - value).min() <= residual + 1e-4 * wanted[0]
        assert before is None or (found.largest >= before.largest * (1 - 1e-6) and found.smallest <= before.smallest * (1 + 1e-6))
        before = found
    assert found.largest > 0.95 * wanted[0]


def test_they_end_when_both_are_known():
    values = torch.linspace(1, 2, 500, dtype=torch.float64)
    values[0], values[-1] = 0.2, 5.0  # stand alone: a few steps find them
    growing = golub_kahan(lambda v: values * v, lambda u: values * u, (lambda v: v, lambda u: u), torch.ones(500, dtype=torch.float64))
    found = last_of(None, growing, 500, 400)
    assert found.converged and not found.exact and found.steps <= 60
    np.testing.assert_allclose([found.largest, found.smallest], [5.0, 0.2], rtol=1e-3)


def test_a_residual_is_what_the_transposed_misses():
    values = torch.linspace(1, 2, 50, dtype=torch.float64)
    moves = (lambda v: values * v, lambda u: values * u, (lambda v: v, lambda u: u), torch.ones(50, dtype=torch.float64))
    found = last_of(None, golub_kahan(*moves), 50, 6)
    diagonal, beside = next(islice(golub_kahan(*moves), 5, None))
    wide = np.column_stack([np.diag(diagonal), np.zeros(6)]) + np.eye(6, 7, 1) * np.array(beside)[:, None]
    lefts, singular, rights = np.linalg.svd(wide[:, :6])
    missed = np.linalg.norm(wide.T @ lefts - np.vstack([rights.T * singular, np.zeros(6)]), axis=0)
    np.testing.assert_allclose([found.largest_residual, found.smallest_residual], missed[[0, -1]], rtol=1e-6)


def test_blocks_that_do_not_fit_are_read_in_turn(network, monkeypatch):
    monkeypatch.setattr("megatron_ngpt.analysis.function.KEPT_BYTES", 0)
    streamed = Network(network.weights, TOKENS)
    assert extremes(streamed, None, 5) == extremes(network, None, 5) and len(streamed._kept) == 1
