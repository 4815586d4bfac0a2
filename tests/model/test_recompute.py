"""Recomputation changes memory, never a number."""

import pytest
import torch

from tests.model.small import blueprint, tokens, trained


def loss_and_gradients(arch: str, recompute: bool, mask: bool) -> list[torch.Tensor]:
    module = trained(blueprint(arch, options={"recompute": recompute, "mask_documents": mask}))
    inputs, targets = tokens(2, 16), tokens(2, 16, seed=1)
    documents = torch.arange(16).expand(2, 16) // 6
    loss = module((inputs, documents) if mask else inputs, targets)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_loss_and_gradients_are_equal_bit_for_bit(arch, mask):
    for kept, recomputed in zip(loss_and_gradients(arch, False, mask), loss_and_gradients(arch, True, mask), strict=True):
        assert torch.equal(kept, recomputed) and kept.any()


def test_blocks_run_twice_with_it_and_once_without():
    for recompute, grad, runs in ((False, True, 1), (True, True, 2), (True, False, 1)):
        module = trained(blueprint(options={"recompute": recompute}))
        counted = []
        module.layers[1].mlp.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        with torch.set_grad_enabled(grad):
            out = module(tokens(1, 8))
        if grad:
            out.sum().backward()
        assert len(counted) == runs
