"""The network as a function of hidden states, block after block, with products by its Jacobian in both directions.

A 7B model in fp32 is 28 GB: as many blocks as fit in `KEPT_BYTES` stay in memory, those that were used last, and another is read when its
turn comes. Beside them there is the hidden state in front of every block.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import layer_list
from megatron_ngpt.model.window import window_of

KEPT_BYTES = 6 * 2**30


class Network:
    """Embedding and blocks of a model at one sequence of tokens.

    nGPT's blocks take the product of T unit spheres to itself, so its Jacobians are restricted to tangent spaces: what leaves the
    sphere is not an input that can occur, and what points along h at the output is lost by the last norm.

    Attributes:
        states: the hidden state before each block and after the last one, fp32 [T, D] each.
        size: dimensions in which an input can move: T (D − 1) on the spheres, T D else.
    """

    @torch.no_grad()
    def __init__(self, weights: Weights, tokens_T: torch.Tensor):
        self.weights, self.blueprint = weights, Blueprint(weights.model, weights.vocabulary)
        self.spherical = weights.model.arch == "ngpt"
        block_bytes = 4 * sum(record.size for record in weights.records.values() if record.layer == 1)
        self._kept, self._room = OrderedDict(), max(1, KEPT_BYTES // block_bytes)
        self.states = [self._embedded(tokens_T)]
        for number in range(weights.model.layers):
            self.states.append(self.block(number)(self.states[-1]))
        self.size = len(tokens_T) * (weights.model.hidden - self.spherical)

    def block(self, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Block `number` on h [T, D]."""
        module = self._module(number)
        window = window_of(self.blueprint, self._length, None, module)

        def step(h_TD: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
                return module.step(h_TD.unsqueeze(0), window).squeeze(0).float()

        return step

    def push(self, v_TD: torch.Tensor, numbers: Iterable[int]) -> torch.Tensor:
        """J v through these blocks, in order, from a v [T, D] that is tangent to one that is."""
        for number in numbers:
            with torch.no_grad():  # forward derivatives are made all the same, and products are plain ones, which have them
                v_TD = torch.func.jvp(self.block(number), (self.states[number],), (v_TD,))[1]
            v_TD = self.tangent(v_TD, number + 1)
        return v_TD

    def pull(self, u_TD: torch.Tensor, numbers: Iterable[int]) -> torch.Tensor:
        """Jᵀ u back through these blocks, which are given in forward order, from a u [T, D] that is tangent to one that is."""
        for number in reversed(list(numbers)):
            h_TD = self.states[number].detach().requires_grad_()
            with torch.enable_grad():
                (u_TD,) = torch.autograd.grad(self.block(number)(h_TD), h_TD, u_TD)
            u_TD = self.tangent(u_TD, number)
        return u_TD

    def tangent(self, v_TD: torch.Tensor, number: int) -> torch.Tensor:
        """v without what points along state `number`, for nGPT."""
        if not self.spherical:
            return v_TD
        h_TD = self.states[number].to(v_TD.dtype)
        return v_TD - h_TD * ((v_TD * h_TD).sum(-1, keepdim=True) / (h_TD * h_TD).sum(-1, keepdim=True))

    def _embedded(self, tokens_T: torch.Tensor) -> torch.Tensor:
        self._length = len(tokens_T)
        return self.weights.stored("model.embed_tokens.weight")[tokens_T].clone()

    def _module(self, number: int) -> nn.Module:
        """Block `number`, read if it is not in memory. Products go up and down the blocks, so what was used last is used next."""
        if number not in self._kept:
            while len(self._kept) >= self._room:
                self._kept.popitem(last=False)
            self._kept[number] = self._read(number)
        self._kept.move_to_end(number)
        return self._kept[number]

    def _read(self, number: int) -> nn.Module:
        kind, arguments = layer_list(self.blueprint)[number + 1]
        module = kind(*arguments).requires_grad_(False)
        for parameter in module.parameters():
            parameter.data = self.weights.stored(parameter.placement.record.name).to(parameter.dtype)
        return module
