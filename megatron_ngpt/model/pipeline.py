"""The layer list over pipeline stages, as a DeepSpeed `PipelineModule`."""

from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import ProcessTopology

from megatron_ngpt.config.costs.stages import stages_of
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import layer_list, run_layers
from megatron_ngpt.model.ends import Head, Loss
from megatron_ngpt.model.window import window_of

_AXES = {"tensor": "model", "data": "data", "pipeline": "pipe"}  # in DeepSpeed's words


class DecoderPipeline(PipelineModule):
    """This rank's stage of the network. Same parameters, same names, as `Decoder`."""

    def __init__(self, blueprint: Blueprint):
        grid, self._blueprint = blueprint.grid, blueprint
        self._bounds = stages_of(blueprint.model, blueprint.vocabulary, grid.pipeline.size)
        slow_first = list(reversed(grid.shape.sizes))
        super().__init__(
            layers=[LayerSpec(kind, *arguments) for kind, arguments in layer_list(blueprint)],
            topology=ProcessTopology([_AXES[axis] for axis in slow_first], [grid.shape.sizes[axis] for axis in slow_first]),
            loss_fn=Loss(blueprint),
        )

    def forward(self, state):
        """What this stage hands on, or the logits, from the tokens [B, T] or what the stage before handed on, h [B, T, D]; with masked
        documents, both are beside the documents [B, T]. Overrides `PipelineModule`, whose layers know nothing of each other."""
        blueprint, masked = self._blueprint, self._blueprint.mask_documents
        x, documents_BT = state if masked else (state, None)
        x = run_layers(self.forward_funcs, x, window_of(blueprint, blueprint.model.context, documents_BT, self))
        return (x, documents_BT) if masked and not isinstance(self.forward_funcs[-1], Head) else x

    def _partition_layers(self, method: str = "") -> None:
        """Overrides `PipelineModule`, which counts parameters and would give the embedding a stage of its own."""
        self.parts = self._bounds
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])
