"""The base optimiser that DeepSpeed steps."""

from torch import nn

from megatron_ngpt.config.recipe import Optimizer
from megatron_ngpt.sphere.blockwise import BlockwiseAdamW


def base_optimizer(optimizer: Optimizer, module: nn.Module) -> BlockwiseAdamW:
    """AdamW; what does not decay gets a group of its own where anything decays."""
    decaying = [p for p in module.parameters() if p.placement.record.decays]
    others = [p for p in module.parameters() if not p.placement.record.decays]
    if optimizer.weight_decay:
        groups = [{"params": decaying, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [g for g in groups if g["params"]]
    else:
        groups = [{"params": decaying + others, "weight_decay": 0.0}]
    return BlockwiseAdamW(groups, lr=optimizer.lr, betas=tuple(optimizer.betas), eps=optimizer.eps)
