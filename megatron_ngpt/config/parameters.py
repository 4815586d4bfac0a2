"""The table of parameters: everything that is a fact about a parameter and not a number in it, from the model section and the vocabulary.

Layers are built from it, and initial values, the optimiser's groups, the sphere, checkpoints, export and import, and all costs read it.
A parameter that is not in the table cannot be made.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_ngpt.config.recipe import Model, Scale


@dataclass(frozen=True)
class Normal:
    """Entries start as draws from N(0, deviation²)."""

    deviation: float


@dataclass(frozen=True)
class Constant:
    """Entries start as `value`."""

    value: float


@dataclass(frozen=True)
class ParameterRecord:
    """One parameter of the whole model.

    Attributes:
        name: its name in checkpoints and exports, the same in every layout.
        layer: its place in the layer list: 0 the embedding, 1 to `model.layers` the blocks, then the head.
        shape: of the global tensor as memory holds it, without vocabulary padding.
        kind: a matrix, a learned scale or a norm's weight.
        start: how its entries start; rows of a spherical one are then brought to length 1.
        spherical: its rows are unit vectors.
        cut: the dimension that tensor ranks divide; None: each holds all of it.
        pads: the cut dimension is padded to divide (the vocabulary's).
        transposed: memory holds it turned against `Linear` layout, which is what exports hold.
        factor: effective value / stored value of a scale, 1 for all else.
        absolute: the effective value is taken as an absolute value.
    """

    name: str
    layer: int
    shape: tuple[int, ...]
    kind: Literal["matrix", "scale", "norm"]
    start: Normal | Constant
    spherical: bool = False
    cut: int | None = None
    pads: bool = False
    transposed: bool = False
    factor: float = 1.0
    absolute: bool = False

    @property
    def decays(self) -> bool:
        """`optimizer.weight_decay` acts on it: on matrices alone, whatever the shape of a scale."""
        return self.kind == "matrix"

    @property
    def size(self) -> int:
        """Its numbers, without padding."""
        return math.prod(self.shape)

    @property
    def exported_shape(self) -> tuple[int, ...]:
        """Of the tensor in an export."""
        return self.shape[::-1] if self.transposed else self.shape

    def local_shape(self, tensor: int) -> tuple[int, ...]:
        """What each of `tensor` ranks holds, padding included. Raises ValueError where the cut dimension does not divide."""
        if self.cut is None:
            return self.shape
        whole = self.shape[self.cut]
        if whole % tensor and not self.pads:
            raise ValueError(f"{self.name}: {whole} does not divide over {tensor} tensor ranks")
        return (*self.shape[: self.cut], -(-whole // tensor), *self.shape[self.cut + 1 :])


def parameter_table(model: Model, vocabulary: int) -> dict[str, ParameterRecord]:
    """Every parameter of a model of `vocabulary` entries by its name, in the order in which modules hold them."""
    make = _Maker(model)
    return {record.name: record for record in make.records(vocabulary)}


class _Maker:
    """The three kinds of record, and who has which."""

    def __init__(self, model: Model):
        self.model = model
        self.ngpt = model.arch == "ngpt"

    def records(self, vocabulary: int) -> Iterator[ParameterRecord]:
        model, head = self.model, self.model.layers + 1
        by_hidden = model.embedding_shard == "hidden"
        yield self.matrix("model.embed_tokens.weight", 0, vocabulary, cut=1 if by_hidden else 0, pads=not by_hidden)
        for number in range(model.layers):
            yield from self.block(f"model.layers.{number}", number + 1)
        yield self.matrix("lm_head.weight", head, vocabulary, pads=True)
        if self.ngpt:
            yield self.scale("logit_scale", head, model.scales.logit, (vocabulary,), cut=0, pads=True)
        else:
            yield self.norm("model.norm.weight", head)

    def block(self, name: str, layer: int) -> Iterator[ParameterRecord]:
        model = self.model
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        queries, keys = model.heads * model.head_size, model.groups * model.head_size
        if self.ngpt:
            yield self.scale(f"{attention}.qk_scale", layer, model.scales.qk, (model.groups, model.head_size), cut=0)
            yield self.scale(f"{attention}.alpha", layer, model.scales.alpha, (model.hidden,), absolute=True)
        else:
            yield self.norm(f"{name}.input_layernorm.weight", layer)
        yield self.matrix(f"{attention}.q_proj.weight", layer, queries)
        yield self.matrix(f"{attention}.k_proj.weight", layer, keys)
        yield self.matrix(f"{attention}.v_proj.weight", layer, keys)
        yield self.matrix(f"{attention}.o_proj.weight", layer, queries, into_residual=True)
        if self.ngpt:
            yield self.scale(f"{mlp}.up_scale", layer, model.scales.up, (model.ffn_size,), cut=0)
            yield self.scale(f"{mlp}.gate_scale", layer, model.scales.gate, (model.ffn_size,), cut=0)
            yield self.scale(f"{mlp}.alpha", layer, model.scales.alpha, (model.hidden,), absolute=True)
        else:
            yield self.norm(f"{name}.post_attention_layernorm.weight", layer)
        yield self.matrix(f"{mlp}.up_proj.weight", layer, model.ffn_size)
        yield self.matrix(f"{mlp}.gate_proj.weight", layer, model.ffn_size)
        yield self.matrix(f"{mlp}.down_proj.weight", layer, model.ffn_size, into_residual=True)

    def matrix(
        self, name: str, layer: int, rows: int, into_residual: bool = False, cut: int = 0, pads: bool = False
    ) -> ParameterRecord:
        """Rows along the hidden axis; the projections back into the residual stream are therefore stored transposed.

        nGPT: entries N(0, 1/√d), then every row on the sphere. Baseline: N(0, 0.02), the projections back divided by √(2 · layers).
        """
        if self.ngpt:
            deviation = 1 / math.sqrt(self.model.hidden)
        else:
            deviation = 0.02 / math.sqrt(2 * self.model.layers) if into_residual else 0.02
        shape = (rows, self.model.hidden)
        return ParameterRecord(name, layer, shape, "matrix", Normal(deviation), self.ngpt, cut, pads, transposed=into_residual)

    def scale(
        self,
        name: str,
        layer: int,
        chosen: Scale,
        shape: tuple[int, ...],
        cut: int | None = None,
        pads: bool = False,
        absolute: bool = False,
    ) -> ParameterRecord:
        """effective = stored · init / scale; stored starts at the scale (paper, section 2.5)."""
        stored = chosen.scale if chosen.scale is not None else 1 / math.sqrt(self.model.hidden)
        factor = chosen.init / stored
        return ParameterRecord(name, layer, shape, "scale", Constant(stored), cut=cut, pads=pads, factor=factor, absolute=absolute)

    def norm(self, name: str, layer: int) -> ParameterRecord:
        return ParameterRecord(name, layer, (self.model.hidden,), "norm", Constant(1.0))
