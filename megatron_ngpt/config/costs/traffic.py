"""Bytes that the collectives of one training step move, by purpose, for one rank of any layout.

The bytes of a collective are those of the larger of what a rank gives and gets: the whole of an all-gather or a reduce-scatter, the tensor
of an all-reduce, an all-to-all or a send. Control traffic is left out: messages of at most `CONTROL_BYTES` that agree on a gradient norm,
a loss, an overflow or a stop, and what only a first step sends (shapes between stages, ZeRO-3's record of the order of layers).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from megatron_ngpt.config.costs.share import Share

CONTROL_BYTES = 32
_FP32, _INT64 = 4, 8


@dataclass(frozen=True)
class Traffic:
    """One purpose's bytes in a step.

    Attributes:
        purpose: activations, replicas (gradients of what tensor ranks hold alike), loss, gradients, weights, sphere, or stages.
        kind: all_reduce, all_gather, reduce_scatter, all_to_all, send or receive.
        along: the axis or slice of the grid (`config.grid`) over whose ranks they move.
        nbytes: of the whole step.
    """

    purpose: str
    kind: str
    along: str
    nbytes: int


def traffic(share: Share) -> list[Traffic]:
    """What moves in one step; purposes that move nothing are left out."""
    found = []
    if share.tensor > 1:
        found += _tensor(share)
    if share.context > 1:
        found += _ring(share) if share.recipe.parallel.context_kind == "ring" else _heads(share)
    if share.replicas > 1:
        found += _replicas(share)
    if share.stages > 1:
        found += _stages(share)
    if share.recipe.model.arch == "ngpt":
        found += _sphere(share)
    return [moved for moved in found if moved.nbytes]


def _tensor(share: Share) -> Iterator[Traffic]:
    """Activations enter and leave a region of the tensor ranks twice a block; ends of the network once each."""
    recipe, times = share.recipe, share.micro_batches
    whole = share.tokens * recipe.model.hidden * share.width
    leaves_again, enters_again = _repeated(share)
    leaves, enters = 2 * share.blocks, 2 * share.blocks + share.has_head
    hidden = share.has_embedding and recipe.model.embedding_shard == "hidden"
    looked_up = share.has_embedding and not hidden
    if share.sequence:
        gathers, scatters = enters + enters_again + leaves + looked_up, leaves + leaves_again + enters + looked_up
        yield Traffic("activations", "all_gather", "tensor", times * gathers * whole)
        yield Traffic("activations", "reduce_scatter", "tensor", times * scatters * whole)
        yield Traffic("activations", "all_to_all", "tensor", times * 2 * hidden * whole // share.tensor)
        replicas = [record for record in share.records if record.cut is None]
        size = sum(record.size * (_FP32 if record.kind == "scale" else share.width) for record in replicas)
        yield Traffic("replicas", "all_reduce", "tensor", times * size)
    else:
        yield Traffic("activations", "all_reduce", "tensor", times * (leaves + leaves_again + enters + looked_up) * whole)
        yield Traffic("activations", "all_gather", "tensor", times * hidden * whole)
    yield Traffic("loss", "all_reduce", "tensor", times * share.has_head * 3 * share.tokens * _FP32)


def _heads(share: Share) -> Iterator[Traffic]:
    """Queries, keys and values go to the ranks of their heads in one all-to-all, the results come back in another; so do gradients. Of
    key/value heads that do not divide over the ranks there are copies."""
    model, times = share.recipe.model, _attentions(share)
    groups = model.groups // share.tensor
    keys = groups * copies(groups, share.context)
    there = share.tokens * model.head_size * share.width * (model.heads // share.tensor + 2 * keys)
    back = share.tokens * model.head_size * share.width * model.heads // share.tensor
    yield Traffic("activations", "all_to_all", "context", (times.forward + times.backward) * (there + back))


def _ring(share: Share) -> Iterator[Traffic]:
    """Keys and values go on to every rank but their own; in backward again, with their gradients in fp32, which come home too."""
    times = _attentions(share)
    numbers = 2 * share.tokens * share.recipe.model.groups * share.recipe.model.head_size // share.tensor
    there = (share.context - 1) * numbers * share.width
    moved = (times.forward + times.backward) * there + times.backward * share.context * numbers * _FP32
    yield Traffic("activations", "send", "context", moved)
    yield Traffic("activations", "receive", "context", moved)


class _Attentions(NamedTuple):
    """How often a step goes through attention on this rank, forward (also where it is recomputed) and backward."""

    forward: int
    backward: int


def _attentions(share: Share) -> _Attentions:
    once = share.micro_batches * share.blocks
    return _Attentions(once * (2 if share.recipe.training.recompute == "full" else 1), once)


def copies(groups: int, ranks: int) -> int:
    """How often each key/value head is sent, so that the heads divide over the context ranks."""
    return ranks // math.gcd(groups, ranks)


def _repeated(share: Share) -> tuple[int, int]:
    """How often a recomputed block leaves and enters regions once more: in all its parts, but for the baseline's last sum, of which
    backward needs nothing."""
    if share.recipe.training.recompute != "full":
        return 0, 0
    return share.blocks * (2 if share.recipe.model.arch == "ngpt" else 1), share.blocks * 2


def _replicas(share: Share) -> Iterator[Traffic]:
    """Gradients: an all-reduce a step (ZeRO 0 and 1) or a micro-batch (ZeRO-2), a reduce-scatter a micro-batch (ZeRO-3). Weights: an
    all-gather a step of what the optimiser moved (ZeRO 1 and 2), or one of each parameter where a layer needs it (ZeRO-3)."""
    stage, gradient = share.choice.zero_stage, share.gradient_width
    if stage < 3:
        times = share.micro_batches if stage == 2 else 1
        with_padding = stage == 1 and share.choice.bf16  # another optimiser of DeepSpeed's, whose gradients are one flat buffer
        numbers = sum(share.padded_groups) if with_padding else share.numbers
        yield Traffic("gradients", "all_reduce", "replicas", times * gradient * numbers)
        yield Traffic("weights", "all_gather", "replicas", share.width * sum(share.padded_groups) if stage else 0)
    else:
        cut = sum(share.padded(record) for record in share.records)
        yield Traffic("gradients", "reduce_scatter", "replicas", share.micro_batches * gradient * cut)
        gathers = sum(times * share.padded(record) for record, times in share.gathers())
        yield Traffic("weights", "all_gather", "replicas", share.width * gathers)


def _stages(share: Share) -> Iterator[Traffic]:
    """Hidden states go on to the next stage, with documents where those are masked; their gradients come back."""
    recipe, times = share.recipe, share.micro_batches
    state = share.tokens * recipe.model.hidden * share.residual_width // (share.tensor if share.sequence else 1)
    documents = share.whole_tokens * _INT64 if recipe.data.document_boundaries == "mask" else 0
    before, after = not share.has_embedding, not share.has_head
    yield Traffic("stages", "send", "pipeline", times * (after * (state + documents) + before * state))
    yield Traffic("stages", "receive", "pipeline", times * (before * (state + documents) + after * state))


def _sphere(share: Share) -> Iterator[Traffic]:
    """Sums of squares of cut rows, and with `optimizer.tangent` as many dot products before them."""
    times = 2 if share.recipe.optimizer.tangent else 1
    yield Traffic("sphere", "all_reduce", "replicas", times * _FP32 * share.rows_cut_by_zero)
    yield Traffic("sphere", "all_reduce", "tensor", times * _FP32 * share.rows_cut_by_tensor)
