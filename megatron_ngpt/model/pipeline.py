"""The layer list over pipeline stages, as a DeepSpeed `PipelineModule`."""

import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import ProcessTopology

from megatron_ngpt.config.costs.stages import stages_of
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import layer_list, run_layers
from megatron_ngpt.model.ends import Head
from megatron_ngpt.model.window import window_of

_AXES = {"model": "tensor", "data": "replicas", "pipe": "pipeline"}  # DeepSpeed's words, and ours; ranks numbered with the first fastest


class DecoderPipeline(PipelineModule):
    """This rank's stage of the network. Same parameters, same names, as `Decoder`."""

    def __init__(self, blueprint: Blueprint):
        grid, self._blueprint = blueprint.grid, blueprint
        self._bounds = stages_of(blueprint.model, blueprint.vocabulary, grid.pipeline.size)
        slow_first = list(reversed(_AXES))
        super().__init__(
            layers=[LayerSpec(kind, *arguments) for kind, arguments in layer_list(blueprint)],
            topology=ProcessTopology(slow_first, [grid.shape.size(_AXES[axis]) for axis in slow_first]),
            loss_fn=self._loss,
        )

    def forward(self, state):
        """What this stage hands on, or what the loss is made of, from the tokens [B, T] or what the stage before handed on,
        h [B, T, D]; with masked documents, both are beside the documents. Overrides `PipelineModule`, whose layers know nothing of each
        other."""
        blueprint, masked = self._blueprint, self._blueprint.mask_documents
        x, documents_BT = state if masked else (state, None)
        *body, last = self.forward_funcs
        head = last if isinstance(last, Head) else None
        window = window_of(blueprint, blueprint.model.context // blueprint.grid.context.size, documents_BT, self)
        x = run_layers(body if head else self.forward_funcs, x, window)
        if head:
            return _for_loss(head, x)
        return (x, documents_BT) if masked else x

    def _loss(self, outputs: tuple[torch.Tensor, ...], targets_BT: torch.Tensor) -> torch.Tensor:
        """The mean loss a token, nats, from what `forward` of the last stage returned."""
        x_BTD, weight_VD, *scale_V = outputs
        return self.forward_funcs[-1].losses.mean_loss(x_BTD, weight_VD, scale_V[0] if scale_V else None, targets_BT)

    def _partition_layers(self, method: str = "") -> None:
        """Overrides `PipelineModule`, which counts parameters and would give the embedding a stage of its own."""
        self.parts = self._bounds
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])


def _for_loss(head: Head, h_BTD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the head's matrix reads, the matrix, and its scale if it has one.

    All that the loss needs goes through the stage's outputs: when their gradients come, and no sooner, DeepSpeed clears those that its bf16
    optimiser has added up already.
    """
    weight_VD, scale_V = head.matrix()
    outputs = head.enter(h_BTD), weight_VD.view_as(weight_VD)
    return outputs if scale_V is None else (*outputs, scale_V)
