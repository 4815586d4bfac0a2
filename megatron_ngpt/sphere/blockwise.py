"""AdamW that goes over its buffers in blocks, so that rows return to the sphere while a cache still has them.

An update moves seven numbers through memory for each weight: weight, gradient and two moments are read, all but the gradient written.
Dividing the rows by their lengths afterwards moves two more. In blocks that a cache holds these two come from the cache.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch

from megatron_ngpt.sphere.rows import SphereRows

_BLOCK_BYTES = 1 << 21  # of rows; calls cost more in smaller ones, and of larger ones gradients and moments push the rows out of the cache


class BlockwiseAdamW(torch.optim.AdamW):
    """torch's fused AdamW, and the same numbers; after `hand_on` it steps block by block, each by the same fused kernel."""

    def __init__(self, params, **options):
        super().__init__(params, fused=True, **options)
        self._blocks: dict[int, list[tuple[int, torch.Tensor | None]]] = {}  # by a buffer's id: lengths, and rows or what lies between them

    def hand_on(self, rows: SphereRows, moved: Callable[[torch.Tensor], None]) -> bool:
        """From now on, give every block of whole rows, fp32 [rows, columns], to `moved` as soon as it has been updated.

        Returns whether it will: a GPU's fused kernel wants all buffers at once.
        """
        places, buffers = defaultdict(list), {}
        for whole in rows.whole.values():
            for buffer, start, piece in whole.places():
                places[id(buffer)].append((start, piece))
                buffers[id(buffer)] = buffer
        if any(buffer.device.type != "cpu" for buffer in buffers.values()):
            return False
        self._blocks = {key: _blocks(buffer.numel(), places[key]) for key, buffer in buffers.items()}
        self._moved = moved
        return bool(buffers)

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """One update of every buffer in `param_groups` that has a gradient; a `found_inf` of 1 moves nothing."""
        if not self._blocks:
            return super().step(closure)
        for group in self.param_groups:
            buffers, gradients, averages, squares, steps = ([] for _ in range(5))
            self._init_group(group, buffers, gradients, averages, squares, [], steps)
            if buffers:  # a group may be without, as ZeRO-3's are in turn
                self._update(group, (buffers, gradients, averages, squares), steps)

    def _update(self, group: dict, held: tuple[list[torch.Tensor], ...], steps: list[torch.Tensor]) -> None:
        """One of weights, gradients and both moments, and their counts of steps."""
        vetoed = getattr(self, "found_inf", None)
        torch._foreach_add_(steps, 1 if vetoed is None else [1 - vetoed] * len(steps))  # one tensor would be read as a number
        update = partial(
            torch._fused_adamw_, max_exp_avg_sqs=[], lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
            weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False, found_inf=vetoed,
        )  # fmt: skip
        between = [[] for _ in range(5)]
        for count, *tensors in zip(steps, *held, strict=True):
            blocks = self._blocks.get(id(tensors[0])) or [(tensors[0].numel(), None)]
            runs = [tensor.view(-1).split([length for length, _ in blocks]) for tensor in tensors]
            for (_, rows), *run in zip(blocks, *runs, strict=True):
                if rows is None:
                    for those, x in zip(between, (*run, count), strict=True):
                        those.append(x)
                else:
                    update(*([x] for x in run), state_steps=[count])
                    self._moved(rows)
        if between[0]:
            update(*between[:4], state_steps=between[4])


def _blocks(length: int, places: list[tuple[int, torch.Tensor]]) -> list[tuple[int, torch.Tensor | None]]:
    """The blocks of a buffer of `length` numbers, from where its pieces start: rows some at a time, and what lies between them."""
    found, at = [], 0
    for start, piece in sorted(places, key=lambda place: place[0]):
        found += [(start - at, None)] if start > at else []
        parts = min(piece.shape[0], max(1, round(4 * piece.numel() / _BLOCK_BYTES)))
        found += [(rows.numel(), rows) for rows in piece.tensor_split(parts)]
        at = start + piece.numel()
    return found + ([(length - at, None)] if length > at else [])
