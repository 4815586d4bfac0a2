"""Documents packed into one window, under `mask`: each has the logits it has alone."""

import pytest
import torch

from tests.model.small import blueprint, tokens, trained

LENGTHS = ((5, 1, 7, 3), (16,), (8, 8))


@pytest.mark.parametrize(("arch", "keys"), [("ngpt", {}), ("ngpt", {"update": "slerp", "kv_heads": 4}), ("gpt", {})])
def test_each_document_has_its_logits_as_if_alone(arch, keys):
    packed = trained(blueprint(arch, options={"mask_documents": True}, **keys))
    alone = trained(blueprint(arch, **keys))
    if arch == "gpt":
        for module in (packed, alone):
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    parameter.data.mul_(10)  # so that attention matters beside the residual
    inputs = tokens(len(LENGTHS), 16)
    documents = torch.tensor([[d for d, length in enumerate(lengths) for _ in range(length)] for lengths in LENGTHS])
    with torch.no_grad():
        found = packed((inputs, documents))
        unmasked = alone(inputs)
        for row, lengths in enumerate(LENGTHS):
            parts = inputs[row].split(lengths)
            wanted = torch.cat([alone(part[None])[0] for part in parts])
            torch.testing.assert_close(found[row], wanted, rtol=0, atol=3e-5)
    assert (found[0] - unmasked[0]).abs().max() > 1e-2, "the mask must matter, or nothing was tested"
    torch.testing.assert_close(found[1], unmasked[1], rtol=0, atol=3e-5)
