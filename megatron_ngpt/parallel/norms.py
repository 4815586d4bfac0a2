"""The norm of a step's gradients, asked of every DeepSpeed optimiser before anything moves; DeepSpeed itself judges nothing.

| optimiser | where it asks for its norm | what is put there |
| --- | --- | --- |
| none (ZeRO-0 in fp32) | never | the base optimiser's step hook |
| `DeepSpeedZeroOptimizer` (ZeRO-1, 2) | `scaled_global_norm` | the norm of the gradients it would have measured goes to us, it gets 0 |
| `DeepSpeedZeroOptimizer_Stage3` | `_get_norm_groups` | the same |
| these two, offloaded | the same | its own norm, of what is in host memory, goes to us, it gets 0 |
| `BF16_Optimizer` (bf16 ZeRO-1) | `get_grads_for_norm` | the norm of what it would have measured goes to us, it gets a 0 to measure |

Its own norm costs a reduction for each group of parameters; ours travels with the loss. A norm of 0 is finite, so DeepSpeed never skips a
step by itself, and waits for no device to learn that; its clip is off (`config/deepspeed_json.py`). `BF16_Optimizer` alone still waits once
a step, for the norm of that 0.
"""

from collections.abc import Callable, Iterable

import torch
from deepspeed.runtime.utils import combine_grad_norm_groups
from torch import nn

from megatron_ngpt.parallel.assumptions import refusal
from megatron_ngpt.parallel.grid import RankGrid

Judge = Callable[[torch.Tensor], None]


def before_weights_move(optimizer, base: torch.optim.Optimizer, parameters: list[nn.Parameter], grid: RankGrid, judge: Judge) -> None:
    """Let `judge` have, at every step before the first step of `base`, this rank's share of the squared gradient norm.

    The shares of all ranks of the world sum to the squared norm; fp32 scalars on the device. No host waits for them.

    Raises:
        ConfigError: a DeepSpeed optimiser that asks for its norm in another way.
    """
    world, replicas = grid.world.size, grid.replicas.size
    if optimizer is base:

        def hook(*_) -> None:
            judge(sum_of_squares([p.grad for p in parameters if p.grad is not None and p.counted], parameters[0].device) / replicas)

        base.register_step_pre_hook(hook)
    elif hasattr(optimizer, "scaled_global_norm"):
        measured = optimizer.scaled_global_norm

        def scaled_global_norm(*_, **__) -> float:
            held = optimizer.params_in_partition
            judge(measured().square() / world if optimizer.cpu_offload else _of_partitions(optimizer.averaged_gradients, held))
            return 0.0

        optimizer.scaled_global_norm = scaled_global_norm
    elif hasattr(optimizer, "_get_norm_groups"):
        norms = optimizer._get_norm_groups

        def no_norm_groups() -> list[float]:
            if optimizer.offload_optimizer:
                judge(combine_grad_norm_groups(norms()).square().to(parameters[0].device) / world)
            else:
                judge(_of_partitions(optimizer.averaged_gradients, optimizer.fp16_groups))
            return [0.0]

        optimizer._get_norm_groups = no_norm_groups
    elif hasattr(optimizer, "get_grads_for_norm"):
        gradients = optimizer.get_grads_for_norm

        def no_gradients(*_, **__) -> tuple[list[torch.Tensor], dict]:
            own = gradients()[0]
            judge(sum_of_squares(own, parameters[0].device) / replicas)
            return [torch.zeros(1, device=parameters[0].device)], {}

        optimizer.get_grads_for_norm = no_gradients
    else:
        raise refusal(parameters[0].placement.record.name, f"{type(optimizer).__name__} asks for no gradient norm that is known")


def _of_partitions(gradients: dict[int, list[torch.Tensor]], held: list[list[nn.Parameter]]) -> torch.Tensor:
    """The squared norm of this rank's partitions: by group, the gradients of the parameters `held` in it; what pads them may come last."""
    counted = []
    for group, parameters in enumerate(held):
        own = [gradient for gradient in gradients[group] if not getattr(gradient, "_zero_padding", False)]
        counted += [gradient for gradient, parameter in zip(own, parameters, strict=False) if parameter.counted]
    return sum_of_squares(counted, gradients[0][0].device)


def sum_of_squares(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Of all numbers, an fp32 scalar."""
    tensors = list(tensors)
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(tensors, 2, torch.float32)).square().sum()
