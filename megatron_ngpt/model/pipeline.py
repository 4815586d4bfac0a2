"""The layer list over pipeline stages, as a DeepSpeed `PipelineModule`."""

from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import ProcessTopology

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import layer_list
from megatron_ngpt.model.ends import Loss

_AXES = {"tensor": "model", "data": "data", "pipeline": "pipe"}  # in DeepSpeed's words


def stage_bounds(layers: int, stages: int, head_cost: float) -> list[int]:
    """Where each stage starts in [embedding, blocks, head], and the end of the last: at least one block a stage, the dearest stage as
    cheap as can be. `head_cost` is the head's cost in blocks; looking up embeddings costs nothing."""
    if stages == 1:
        return [0, layers + 2]
    most = layers - (stages - 1)  # blocks the last stage could have

    def dearest(last: int) -> float:
        return max(-(-(layers - last) // (stages - 1)), last + head_cost)

    last = min(range(most, 0, -1), key=dearest)
    others, extra = divmod(layers - last, stages - 1)
    sizes = [others + (stage < extra) for stage in range(stages - 1)]
    bounds = [0]
    for size in sizes:
        bounds.append(max(1, bounds[-1]) + size)
    return [*bounds, layers + 2]


def head_cost(model: Model, vocabulary: int) -> float:
    """Matrix products of the head over those of a block."""
    width = model.heads * model.head_size
    block = 2 * model.hidden * (width + model.groups * model.head_size) + 3 * model.hidden * model.ffn_size + width * model.context
    return vocabulary * model.hidden / block


class DecoderPipeline(PipelineModule):
    """This rank's stage of the network. Same parameters, same names, as `Decoder`."""

    def __init__(self, blueprint: Blueprint):
        grid = blueprint.grid
        self._bounds = stage_bounds(
            blueprint.model.layers, grid.pipeline.size, head_cost(blueprint.model, blueprint.vocabulary)
        )
        slow_first = list(reversed(grid.shape.sizes))
        super().__init__(
            layers=[LayerSpec(kind, *arguments) for kind, arguments in layer_list(blueprint)],
            topology=ProcessTopology([_AXES[axis] for axis in slow_first], [grid.shape.sizes[axis] for axis in slow_first]),
            loss_fn=Loss(blueprint),
        )

    def _partition_layers(self, method: str = "") -> None:
        """Overrides `PipelineModule`, which counts parameters and would give the embedding a stage of its own."""
        self.parts = self._bounds
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])
