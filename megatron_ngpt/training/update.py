"""One update: what happens between the gradients and the weights, and in which order.

1. norm: of all gradients, each number once, before anything moves (`parallel/norms.py`);
2. verdict: loss and norm of all ranks travel in one reduction, and every rank comes to the same verdict (`history.py`);
3. clip: gradients shrink to `optimizer.clip`;
4. tangent: with `optimizer.tangent` they lose their part along each spherical row;
5. optimiser: the base optimiser moves the masters;
6. renormalisation: spherical rows return to length 1; on a CPU whole rows do so as soon as the optimiser has moved some of them, while a
   cache still has these (`sphere/blockwise.py`);
7. publication: DeepSpeed copies and gathers the masters for the forward pass.

ZeRO goes through 3 to 6 once for every flat partition, the others once. A vetoed update goes through all of them too and moves nothing:
torch's fused optimisers leave weights, moments and step counts as they are where `found_inf` says so, and the renormalisation divides by
1. So nobody on the host has to know the verdict, and DeepSpeed is in the state it is in after every step, its gradients spent.

What an update learns stays on the device until it is read (`read`): that is the one time the host waits for the device.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.distributed as dist
from torch import nn

from megatron_ngpt.monitor.clock import Clock
from megatron_ngpt.monitor.devices import memory
from megatron_ngpt.monitor.observer import Observer
from megatron_ngpt.parallel.collectives import reduce_vector
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.norms import before_weights_move
from megatron_ngpt.sphere.blockwise import BlockwiseAdamW
from megatron_ngpt.sphere.renormalise import NormErrors, Renormaliser
from megatron_ngpt.sphere.tangent import project
from megatron_ngpt.training.history import History


@dataclass(frozen=True)
class StepResult:
    """What one update learnt.

    Attributes:
        loss: the mean over the global batch before the update, nats a token.
        grad_norm: before clipping.
        vetoed: nothing was moved, since loss or norm is not finite, or too far above its history.
        norm_errors: of the spherical rows over all ranks, where they were measured.
        memory: GiB of the rank that has most, where it was measured: the device's peak, the device's reserved by torch, the host's; and the
            least that is still available on any host.
        source_losses: for each source of a blend, the sum over its rows in the global batch of their mean losses, where measured.
    """

    loss: float
    grad_norm: float
    vetoed: bool
    norm_errors: NormErrors | None
    memory: tuple[float, float, float, float] | None = field(default=None, compare=False)
    source_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A `StepResult` that is still on the device: fp32 [5] with NaN for the errors, and where all is measured [9 + sources]."""

    numbers: torch.Tensor

    def read(self) -> StepResult:
        """The numbers here; waits for the device."""
        return read([self])[0]


def read(outcomes: Sequence[Outcome]) -> list[StepResult]:
    """The numbers of several updates; waits for the device once."""
    everything = iter(torch.cat([outcome.numbers for outcome in outcomes]).tolist())
    return [_result(*islice(everything, outcome.numbers.numel())) for outcome in outcomes]


def _result(loss: float, norm: float, vetoed: float, before: float, after: float, *more: float) -> StepResult:
    errors = None if math.isnan(after) else NormErrors(before, after)
    if not more:
        return StepResult(loss, norm, bool(vetoed), errors)
    *memory, scarcity = more[:4]
    return StepResult(loss, norm, bool(vetoed), errors, (*memory, -scarcity), more[4:])


class Update:
    """Makes updates with `base` under the `optimizer` that DeepSpeed made of it.

    Args:
        module: the model, whose parameters' `counted` says which gradients this rank counts.
        history: of losses and norms, which vetoes; all ranks have the same.
        clock: is told when the optimiser's part of a step begins.
        observer: sees gradients and weights around each step of `base`.
        clip: the largest gradient norm, 0 for any.
        tangent: project gradients on the sphere's tangent space.

    Raises:
        ConfigError: DeepSpeed's optimiser is of a kind whose norm can't be had.
    """

    def __init__(
        self, optimizer, base: torch.optim.Optimizer, module: nn.Module, grid: RankGrid, renormaliser: Renormaliser, clip: float,
        tangent: bool, history: History, clock: Clock, observer: Observer | None = None,
    ):  # fmt: skip
        if not getattr(base, "_step_supports_amp_scaling", False):
            raise TypeError(f"{type(base).__name__} has no `found_inf`, by which an update is vetoed: use a fused optimiser of torch's")
        self.base, self.grid, self.renormaliser = base, grid, renormaliser
        self.clip, self.tangent, self.history, self.clock, self.observer = clip, tangent, history, clock, observer
        before_weights_move(optimizer, base, list(module.parameters()), grid, self._judge)
        self._blockwise = isinstance(base, BlockwiseAdamW) and base.hand_on(renormaliser.rows, self._moved)
        base.register_step_pre_hook(self._before)
        base.register_step_post_hook(self._after)

    def run(
        self, lr: float, measure: bool, gradients: Callable[[], None], loss: Callable[[], torch.Tensor | None],
        source_losses: Callable[[], torch.Tensor] | None = None, trial: bool = False,
    ) -> Outcome:  # fmt: skip
        """One update.

        Args:
            trial: whatever the verdict, nothing moves, and nothing is remembered or observed.
            measure: norm errors, memory and losses by source too.
            gradients: forward and backward passes, at whose end DeepSpeed steps.
            loss: then, the mean loss over this rank's rows, an fp32 scalar; None on stages that don't know it.
            source_losses: then, this rank's share of the sum of the losses of each source's rows, fp32 [sources].
        """
        for group in self.base.param_groups:
            group["lr"] = lr
        self._measure, self._loss, self._errors, self._source_losses, self._trial = measure, loss, [], source_losses, trial
        with self.clock.within("forward_backward"):
            gradients()
        return Outcome(torch.cat([self._numbers, *self._largest(), self._by_source]))

    @torch.no_grad()
    def _judge(self, squared_norm: torch.Tensor) -> None:
        """Norm and verdict, from this rank's share of the squared norm."""
        self.clock.enter("optimizer")
        loss = self._loss()
        knowing = self.grid.replicas.size * self.grid.tensor.size  # ranks that know a loss; tensor ranks know the same one
        loss = squared_norm.new_zeros(()) if loss is None else loss.to(squared_norm.dtype) / knowing
        by_source = self._source_losses() if self._source_losses and self._measure else squared_norm.new_empty(0)
        shares = torch.cat([torch.stack([loss, squared_norm]), by_source])
        if self.grid.world.size > 1:
            dist.all_reduce(shares, group=self.grid.world.group)
        loss, norm, self._by_source = shares[0], shares[1].sqrt(), shares[2:]
        vetoed = self.history.judge(loss, norm)
        self._numbers = torch.stack([loss, norm, vetoed.to(loss.dtype)])
        vetoed = torch.ones_like(vetoed) if self._trial else vetoed
        self.history.add(loss, norm, vetoed)
        shrink = (self.clip / (norm + 1e-6)).clamp(max=1.0) if self.clip else torch.ones_like(norm)
        self._shrink = torch.where(vetoed, 1.0, shrink)  # what is not finite may not spread to where DeepSpeed keeps zeros
        self._vetoed = vetoed
        self.base.found_inf = vetoed.float()

    @torch.no_grad()
    def _before(self, base: torch.optim.Optimizer, _args, _kwargs) -> None:
        """Clip and tangent, of the gradients that `base` is about to use."""
        if self.observer and not self._trial:
            self.observer.before(base)
        gradients = [p.grad for group in base.param_groups for p in group["params"] if p.grad is not None]
        if gradients and gradients[0].device != self._vetoed.device:  # offloaded: host and device wait for each other all the time
            self._shrink, self._vetoed, base.found_inf = (x.to(gradients[0].device) for x in (self._shrink, self._vetoed, base.found_inf))
        if self.clip and gradients:
            torch._foreach_mul_(gradients, self._shrink)
        if self.tangent:
            project(self.renormaliser.rows, self.renormaliser.groups_in(base))

    def _moved(self, rows: torch.Tensor) -> None:
        """Renormalisation of some whole rows, which `base` has just moved."""
        self._keep_errors(self.renormaliser.rescale(rows, self._measure, self._vetoed))

    def _after(self, base: torch.optim.Optimizer, _args, _kwargs) -> None:
        """Renormalisation of what `base` has moved, or of what is left of it."""
        groups = self.renormaliser.groups_in(base)
        self._keep_errors(self.renormaliser.renormalise(groups, self._measure, self._vetoed, whole=not self._blockwise))
        if self.observer and not self._trial:
            self.observer.after(base)

    def _keep_errors(self, errors: torch.Tensor | None) -> None:
        if errors is not None:
            self._errors.append(errors)

    def _largest(self) -> list[torch.Tensor]:
        """The largest of all ranks (collective where they are measured): norm errors before and after rescaling, and memory; NaN for the
        errors where nothing is measured."""
        if not self._measure:
            return [self._numbers.new_full((2,), torch.nan)]
        *used, available = memory(self._numbers.device)
        none = self._numbers.new_zeros(2)
        errors = torch.stack([none, *(errors.to(none.device) for errors in self._errors)]).amax(0)
        worst = torch.cat([errors, none.new_tensor([*used, -available])])
        return [reduce_vector(worst, self.grid.world, dist.ReduceOp.MAX) if self.grid.world.size > 1 else worst]
