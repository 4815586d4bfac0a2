"""The base optimiser that DeepSpeed steps, and the gradient norm where DeepSpeed gives none."""

import torch
import torch.distributed as dist
from torch import nn

from megatron_ngpt.config.recipe import Optimizer
from megatron_ngpt.parallel.grid import RankGrid


def base_optimizer(optimizer: Optimizer, module: nn.Module) -> torch.optim.AdamW:
    """AdamW; what does not decay gets a group of its own where anything decays."""
    decaying = [p for p in module.parameters() if p.placement.record.decays]
    others = [p for p in module.parameters() if not p.placement.record.decays]
    if optimizer.weight_decay:
        groups = [{"params": decaying, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [g for g in groups if g["params"]]
    else:
        groups = [{"params": decaying + others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=tuple(optimizer.betas), eps=optimizer.eps, fused=True)


class GradientClipper:
    """Clips by the true global norm inside the base optimiser's step, as DeepSpeed's ZeRO optimisers do in theirs.

    Every number counts once: parameters flagged `model_parallel` here, summed over the ranks of one model replica.

    Attributes:
        norm: the norm before clipping, of the last step.
    """

    def __init__(self, module: nn.Module, grid: RankGrid, clip: float):
        self.parameters, self.grid, self.clip = list(module.parameters()), grid, clip
        self.norm = 0.0

    def attach(self, base: torch.optim.Optimizer) -> None:
        """Clip before every step of the base optimiser."""
        base.register_step_pre_hook(lambda _optimizer, _args, _kwargs: self._clip())

    @torch.no_grad()
    def _clip(self) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        counted = [p.grad for p in self.parameters if p.grad is not None and p.model_parallel]
        squared = torch.zeros((), device=self.parameters[0].device)
        if counted:
            squared = torch.stack(torch._foreach_norm(counted)).square().sum()
        if self.grid.model.size > 1:
            dist.all_reduce(squared, group=self.grid.model.group)
        self.norm = squared.sqrt().item()
        if self.clip and self.norm > self.clip:
            torch._foreach_mul_(gradients, self.clip / (self.norm + 1e-6))
