"""What one rank has of a run: its stage's parameters, its rows of a step's tokens, and what DeepSpeed's ZeRO cuts, and where."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from megatron_ngpt.config.costs.stages import stages_of
from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice
from megatron_ngpt.config.grid import given_sizes, grid_of
from megatron_ngpt.config.parameters import ParameterRecord, parameter_table
from megatron_ngpt.config.recipe import Recipe

_ALIGNMENT = 2  # numbers to which DeepSpeed's flat partitions are padded, on each rank
_PERSISTENCE_THRESHOLD, _REUSE_DISTANCE = 10**5, 10**9  # DeepSpeed's own, where its JSON leaves them out
_WIDTHS = {"fp32": 4, "bf16": 2, "float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Share:
    """The share of a rank of pipeline stage `stage` that holds part `replica` of what ZeRO divides, in a run over `world` ranks.

    Its tensor ranks have the same share; vocabulary padding counts where it takes room or travels.
    """

    recipe: Recipe
    choice: DeepSpeedChoice
    vocabulary: int
    world: int
    stage: int = 0
    replica: int = 0

    @cached_property
    def _grid(self):
        return grid_of(self.world, given_sizes(self.recipe.parallel))

    @property
    def tensor(self) -> int:
        """Ranks that share every matrix."""
        return self._grid.size("tensor")

    @property
    def context(self) -> int:
        """Ranks that the sequence is divided over."""
        return self._grid.size("context")

    @property
    def replicas(self) -> int:
        """Ranks that have the same parameters, over which ZeRO divides."""
        return self._grid.size("replicas")

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        return self._grid.size("pipeline")

    @property
    def sequence(self) -> bool:
        """Activations between blocks are split over the tensor ranks."""
        return self.recipe.parallel.sequence and self.tensor > 1

    @property
    def micro_batches(self) -> int:
        """Forward passes of a step."""
        return self.recipe.training.global_batch // (self.recipe.training.micro_batch * self._grid.size("readers"))

    @property
    def whole_tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.recipe.training.micro_batch * self.recipe.model.context

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that this rank has."""
        return self.whole_tokens // self.context

    @property
    def width(self) -> int:
        """Bytes of a number of the weights, and of the activations in matrix products."""
        return 2 if self.choice.bf16 else 4

    @property
    def residual_width(self) -> int:
        """Bytes of a number of the hidden state between blocks."""
        return _WIDTHS[self.recipe.model.residual_dtype]

    @property
    def gradient_width(self) -> int:
        """Bytes of a number of the gradients as they are reduced over replicas."""
        return _WIDTHS.get(self.choice.raw.get("communication_data_type"), self.width)

    # Layers and parameters.

    @cached_property
    def layers(self) -> range:
        """Of the layer list: 0 the embedding, blocks, the head."""
        bounds = stages_of(self.recipe.model, self.vocabulary, self.stages)
        return range(bounds[self.stage], bounds[self.stage + 1])

    @property
    def has_embedding(self) -> bool:
        """The stage has the first layer."""
        return 0 in self.layers

    @property
    def has_head(self) -> bool:
        """The stage has the last layer, and the loss."""
        return self.recipe.model.layers + 1 in self.layers

    @property
    def blocks(self) -> int:
        """Blocks of the stage."""
        return len(self.layers) - self.has_embedding - self.has_head

    @cached_property
    def records(self) -> list[ParameterRecord]:
        """The stage's parameters, as its modules have them in order."""
        return [record for record in parameter_table(self.recipe.model, self.vocabulary).values() if record.layer in self.layers]

    def local(self, record: ParameterRecord) -> int:
        """A parameter's numbers here, before ZeRO."""
        return math.prod(record.local_shape(self.tensor))

    @property
    def numbers(self) -> int:
        """All parameters' numbers here, before ZeRO."""
        return sum(self.local(record) for record in self.records)

    # What ZeRO does.

    @property
    def groups(self) -> list[list[ParameterRecord]]:
        """The optimiser's groups, each in the order in which ZeRO 1 and 2 lay it out flat."""
        decaying = [record for record in self.records if record.decays]
        others = [record for record in self.records if not record.decays]
        return [group for group in (decaying, others) if group] if self.recipe.optimizer.weight_decay else [decaying + others]

    @property
    def padded_groups(self) -> list[int]:
        """Numbers of each group's flat buffer, padded so that its partitions are equal and aligned."""
        unit = _ALIGNMENT * self.replicas
        return [-(-sum(map(self.local, group)) // unit) * unit for group in self.groups]

    def padded(self, record: ParameterRecord) -> int:
        """A parameter's numbers here, padded so that ZeRO-3's partitions of it are equal."""
        return -(-self.local(record) // self.replicas) * self.replicas

    def gathers(self) -> Iterator[tuple[ParameterRecord, int]]:
        """How often a step gathers each parameter under ZeRO-3.

        Small ones stay whole on every rank: once, after the update. The others once a micro-batch. Twice, where so many numbers lie
        between their uses in forward and in backward that DeepSpeed lets go of them; an upper bound, as it keeps those that its
        prefetcher found still there.
        """
        zero = self.choice.raw.get("zero_optimization", {})
        threshold = zero.get("stage3_param_persistence_threshold", _PERSISTENCE_THRESHOLD)
        room = zero.get("stage3_model_persistence_threshold", math.inf)
        distance = zero.get("stage3_max_reuse_distance", _REUSE_DISTANCE)
        after = self.numbers
        for record in self.records:
            numbers = self.local(record)
            after -= numbers
            if numbers <= threshold and numbers <= room:
                room -= numbers
                yield record, 1
            else:
                yield record, self.micro_batches * (2 if 2 * after >= distance else 1)

    @property
    def rows_cut_by_zero(self) -> int:
        """Unit vectors that lie on two replicas or more."""
        return sum(_cut_rows(*laid) for laid in self._laid_out())

    @property
    def rows_cut_by_tensor(self) -> int:
        """Unit vectors of which each tensor rank has a slice, as far as this replica has some of it."""
        if self.tensor == 1:
            return 0
        return sum(_rows_here(*laid, self.replica) for laid in self._laid_out() if laid[0].record.cut == 1)

    def _laid_out(self) -> Iterator[tuple["_Rows", int, int]]:
        """Each spherical parameter, where it starts in a flat buffer, and the numbers of a replica's partition of that."""
        stage = self.choice.zero_stage
        if stage in (1, 2):
            for group, padded in zip(self.groups, self.padded_groups, strict=True):
                start = 0
                for record in group:
                    if record.spherical:
                        yield _Rows(record, *record.local_shape(self.tensor)), start, padded // self.replicas
                    start += self.local(record)
        else:
            for record in filter(lambda record: record.spherical, self.records):
                size = self.padded(record) // self.replicas if stage else None
                yield _Rows(record, *record.local_shape(self.tensor)), 0, size


@dataclass(frozen=True)
class _Rows:
    """A spherical parameter's local shape."""

    record: ParameterRecord
    rows: int
    columns: int


def _cut_rows(matrix: _Rows, start: int, partition: int | None) -> int:
    """Rows that a cut of the flat buffer, at every multiple of `partition`, parts."""
    if partition is None:
        return 0
    end = start + matrix.rows * matrix.columns
    cuts = (at - start for at in range(-(-start // partition) * partition, end, partition))
    return len({at // matrix.columns for at in cuts if at % matrix.columns})


def _rows_here(matrix: _Rows, start: int, partition: int | None, replica: int) -> int:
    """Rows of which the replica's partition has some."""
    if partition is None:
        return matrix.rows
    first = max(0, replica * partition - start)
    end = min(matrix.rows * matrix.columns, (replica + 1) * partition - start)
    return max(0, -(-end // matrix.columns) - first // matrix.columns)
