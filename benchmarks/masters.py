"""What follows a backward in a bare loop: gradients to fp32, AdamW on fp32 masters, the masters back to the weights."""

import torch
from torch import nn

from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.sphere.blockwise import BlockwiseAdamW
from megatron_ngpt.sphere.renormalise import Renormaliser


class Masters:
    """The trainable parameters of a module whose weights become `dtype`; in fp32 these are their own masters.

    Gradients have memory of their own that stays, as in an optimiser that sums them in fp32.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, **adamw):
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.named, self.weights = named, list(named.values())
        if dtype != torch.float32:
            self.named = {name: parameter.detach().clone().requires_grad_() for name, parameter in named.items()}
        self.masters = list(self.named.values())
        for master, weight in zip(self.masters, self.weights, strict=True):
            if master is not weight:
                master.grad, weight.data = torch.zeros_like(master), weight.data.to(dtype)
                if hasattr(weight, "placement"):
                    master.placement = weight.placement
        self.adamw, self.renormalise = BlockwiseAdamW(self.masters, weight_decay=0, **adamw), lambda: None

    def return_to_sphere(self, compiled: bool) -> None:
        """After every update from now on, on one rank: our nGPT's masters."""
        holder = nn.ParameterList()
        holder.parameters = lambda: iter(self.masters)
        renormaliser = Renormaliser(shards_of(holder), RankGrid(), compiled=compiled)
        if not self.adamw.hand_on(renormaliser.rows, renormaliser.rescale):
            self.renormalise = renormaliser.renormalise

    def update(self) -> None:
        """From the gradients."""
        self.adamw.step()
        self.renormalise()

    @property
    def apart(self) -> bool:
        """Whether they are not the weights themselves."""
        return self.masters[0] is not self.weights[0]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """From the weights, which have none then."""
        if self.apart:
            torch._foreach_copy_([master.grad for master in self.masters], [weight.grad for weight in self.weights])
            for weight in self.weights:
                weight.grad = None

    @torch.no_grad()
    def give_back(self) -> None:
        """The weights are the masters' again; no gradient is left on them."""
        if self.apart:
            torch._foreach_copy_(self.weights, self.masters)
        else:
            self.adamw.zero_grad()
