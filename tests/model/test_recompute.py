"""Recomputation, chunks and offload change memory, never a number."""

import pytest
import torch

from tests.model.small import blueprint, tokens, trained

MODES = {
    "full": {"recompute": "full"},
    "selective": {"recompute": "selective"},
    "full, offload": {"recompute": "full", "offload": True},
    "chunks": {"ffn_chunks": 3},
    "selective, chunks": {"recompute": "selective", "ffn_chunks": 3},
    "full, chunks": {"recompute": "full", "ffn_chunks": 3},
}


def loss_and_gradients(arch: str, mask: bool, **options) -> list[torch.Tensor]:
    module = trained(blueprint(arch, options=options | {"mask_documents": mask}))
    inputs, targets = tokens(2, 16), tokens(2, 16, seed=1)
    documents = torch.arange(16).expand(2, 16) // 6
    loss = module((inputs, documents) if mask else inputs, targets)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_loss_and_gradients_are_equal(arch, mask, mode):
    for kept, found in zip(loss_and_gradients(arch, mask), loss_and_gradients(arch, mask, **MODES[mode]), strict=True):
        if "chunks" in mode:  # sums over tokens in another order
            assert torch.allclose(kept, found, rtol=1e-5, atol=1e-6 * kept.abs().max().item())
        else:
            assert torch.equal(kept, found)
        assert kept.any()


def test_blocks_run_twice_with_full_and_once_without():
    for recompute, grad, runs in (("none", True, 1), ("selective", True, 1), ("full", True, 2), ("full", False, 1)):
        module = trained(blueprint(options={"recompute": recompute}))
        counted = []
        for layer in (module.layers[1].mlp.down_proj, module.layers[1].self_attn.o_proj):
            layer.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        with torch.set_grad_enabled(grad):
            out = module(tokens(1, 8))
        if grad:
            out.sum().backward()
        assert len(counted) == 2 * runs


def test_block_inputs_leave_through_host_memory(monkeypatch):
    moved = []
    real = torch.autograd.graph.save_on_cpu
    monkeypatch.setattr("megatron_ngpt.model.blocks.save_on_cpu", lambda **keys: moved.append(keys) or real(**keys))
    module = trained(blueprint(options={"recompute": "full", "offload": True}))
    module(tokens(1, 8)).sum().backward()
    assert moved == [{"pin_memory": False}] * (len(module.layers) - 2)
