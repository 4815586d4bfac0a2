"""The memory that a rank needs."""

import bisect
import math
from dataclasses import dataclass

from megatron_ngpt.config.costs.stages import stages_of
from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice
from megatron_ngpt.config.grid import given_sizes, grid_of
from megatron_ngpt.config.parameters import parameter_table
from megatron_ngpt.config.recipe import Recipe


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of the rank that needs most, and the part of them that lies in host memory under offload."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    offloaded: int

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimiser + self.activations - self.offloaded


def memory(recipe: Recipe, choice: DeepSpeedChoice, vocabulary: int, world: int) -> Memory:
    """An estimate for the rank that needs most of `world`: persistent state exact to padding, activations roughly.

    DeepSpeed keeps, beside the weights that a forward pass uses, fp32 masters and two Adam moments (12 bytes a parameter,
    divided over the data ranks by ZeRO 1 and up; ZeRO-0 in fp32 has no separate masters), and gradients accumulated in fp32
    (divided by ZeRO 2 and up). ZeRO-3 divides the weights too.
    """
    local = _local_parameters(recipe, vocabulary)
    grid = grid_of(world, given_sizes(recipe.parallel))
    data = grid.size("replicas")
    stage = choice.zero_stage
    weights = local * (2 if choice.bf16 else 4) // (data if stage == 3 else 1)
    gradients = local * 4 // (data if stage >= 2 else 1)
    optimiser = local * (12 if stage else 8) // (data if stage else 1)
    offloaded = optimiser + (gradients if stage >= 2 else 0) if choice.offload else 0
    return Memory(weights, gradients, optimiser, _activations(recipe, choice, vocabulary, grid.size("readers")), offloaded)


def _local_parameters(recipe: Recipe, vocabulary: int) -> int:
    """Parameters of the largest stage's tensor share."""
    bounds = stages_of(recipe.model, vocabulary, recipe.parallel.pipeline)
    held = [0] * (len(bounds) - 1)
    for record in parameter_table(recipe.model, vocabulary).values():
        stage = bisect.bisect_right(bounds, record.layer) - 1
        held[stage] += math.prod(record.local_shape(recipe.parallel.tensor))
    return max(held)


def _activations(recipe: Recipe, choice: DeepSpeedChoice, vocabulary: int, readers: int) -> int:
    """What a forward pass keeps for backward, roughly: vectors a token and block, and the logits of one micro-batch in fp32.

    A block keeps about eight vectors of the hidden width (split over the tensor ranks by sequence parallelism alone),
    q, k and v twice, the attention's result and three of the feed-forward's width (split by tensor parallelism).
    Recomputation keeps the block's input alone, and one block whole while it runs backward. The first pipeline stage
    holds as many micro-batches as there are stages.
    """
    model, training, parallel = recipe.model, recipe.training, recipe.parallel
    tokens, width = training.micro_batch * model.context, 2 if choice.bf16 else 4
    residual = 2 if model.residual_dtype == "bfloat16" else 4
    spread = parallel.tensor if parallel.sequence else 1
    sharded = 3 * model.hidden + 4 * model.groups * model.head_size + 3 * model.ffn_size
    whole = tokens * ((4 * residual + 4 * width) * model.hidden // spread + width * sharded // parallel.tensor)
    layers = -(-model.layers // parallel.pipeline)
    kept = layers * tokens * residual * model.hidden // spread + whole if training.recompute == "full" else layers * whole
    accumulated = training.global_batch // (training.micro_batch * readers)
    in_flight = min(parallel.pipeline, accumulated)
    return kept * in_flight + 2 * 4 * tokens * vocabulary // parallel.tensor
