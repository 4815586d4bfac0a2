"""The model under a DeepSpeed engine, with its masters on the sphere: one object that trains on, and evaluates, a global batch.

A plain `DeepSpeedEngine` runs micro-batches one by one; a `PipelineEngine` runs them through its schedule. Nothing above this module
asks which of the two it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.batches import Rows
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.ends import Loss
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.pipeline import DecoderPipeline
from megatron_ngpt.parallel.assumptions import checked_shards
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import Shard, publish_masters
from megatron_ngpt.sphere.renormalise import NormErrors, Renormaliser
from megatron_ngpt.sphere.tangent import TangentGradients
from megatron_ngpt.training.optimizer import GradientClipper, base_optimizer

Batch = tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], torch.Tensor]  # (what the embedding reads, targets [B, T])


@dataclass(frozen=True)
class StepResult:
    """What one update tells: the mean loss before it, nats a token, and the gradient norm before clipping."""

    loss: float
    grad_norm: float


class DeepSpeedTopology:
    """The rank grid in the words of DeepSpeed's `mpu`: "model parallel" are the tensor ranks, "data parallel" the replicas."""

    def __init__(self, grid: RankGrid):
        for name, axis in (("model", grid.tensor), ("data", grid.replicas)):
            setattr(self, f"get_{name}_parallel_rank", lambda axis=axis: axis.rank)
            setattr(self, f"get_{name}_parallel_world_size", lambda axis=axis: axis.size)
            setattr(self, f"get_{name}_parallel_group", lambda axis=axis: axis.group)


class Engine:
    """Trains one model in one layout.

    Attributes:
        shards: what this rank holds of every parameter.
        base: the optimiser that DeepSpeed steps, whose state the checkpoints hold.
    """

    def __init__(self, recipe: Recipe, vocabulary: int, engine_config: dict, grid: RankGrid, device: torch.device):
        self.recipe, self.grid, self.device = recipe, grid, device
        self.blueprint = Blueprint(
            recipe.model,
            vocabulary,
            grid,
            sequence=recipe.parallel.sequence and grid.tensor.size > 1,
            mask_documents=recipe.data.document_boundaries == "mask",
            recompute=recipe.training.recompute == "full",
            compile=recipe.training.compile,
        )
        module = build_module(self.blueprint, engine_config)
        self.base = base_optimizer(recipe.optimizer, module)
        self.clipper = None
        if _zero_stage(engine_config) == 0:  # DeepSpeed then steps the fp32 parameters themselves, and reports no gradient norm
            self.clipper = GradientClipper(module, grid, recipe.optimizer.clip)
            self.clipper.attach(self.base)
        mpu = None if grid.pipeline.size > 1 else DeepSpeedTopology(grid)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=self.base, config=engine_config, mpu=mpu, dist_init_required=False
        )
        self.loss = Loss(self.blueprint)
        self.shards: dict[str, Shard] = checked_shards(module, self.optimizer, self.base, grid.replicas)
        self.renormaliser = Renormaliser(self.shards, grid, self.optimizer, compiled=recipe.training.compile)
        if recipe.optimizer.tangent:
            TangentGradients(self.renormaliser).attach(self.base)
        self.renormaliser.attach(self.base)

    def initialise(self) -> None:
        """The model of step 0, on the sphere."""
        initialise(self.shards, self.recipe.training.seed)
        self.renormaliser.renormalise()
        self.publish()

    def publish(self) -> None:
        """Let the forward pass use the masters as they are now."""
        publish_masters(self.optimizer)

    def step(self, rows: Rows, lr: float, measure: bool) -> StepResult:
        """One update from this rank's rows of the global batch; with `measure`, norm errors are noted on the way."""
        for group in self.base.param_groups:
            group["lr"] = lr
        self.renormaliser.measure = measure
        if self.grid.pipeline.size > 1:
            loss = self.engine.train_batch(self._micro_batches(rows)).item()
        else:
            loss = self._train_plain(rows)
        return StepResult(loss, self._grad_norm())

    def take_errors(self) -> NormErrors:
        """Norm errors of the last measured step, over all ranks (collective)."""
        return self.renormaliser.take_errors()

    def evaluate(self, rows: Rows) -> float:
        """The mean loss over a global batch, nats a token, from this rank's rows of it."""
        if self.grid.pipeline.size > 1:
            loss = self.engine.eval_batch(self._micro_batches(rows)).item()
            self.engine.train()
            return loss
        self.engine.eval()
        with torch.no_grad():
            losses = [self.loss(self.engine(inputs), targets) for inputs, targets in self._micro_batches(rows)]
        self.engine.train()
        return self._mean(losses)

    def _train_plain(self, rows: Rows) -> float:
        losses = []
        for inputs, targets in self._micro_batches(rows):
            loss = self.loss(self.engine(inputs), targets)
            self.engine.backward(loss)
            self.engine.step()
            losses.append(loss.detach())
        return self._mean(losses)

    def _mean(self, losses: list[torch.Tensor]) -> float:
        mean = torch.stack(losses).mean()
        if self.grid.replicas.size > 1:
            dist.all_reduce(mean, group=self.grid.replicas.group)
            mean /= self.grid.replicas.size
        return mean.item()

    def _micro_batches(self, rows: Rows) -> Iterator[Batch]:
        size = self.recipe.training.micro_batch
        tokens = torch.from_numpy(rows.tokens).to(self.device, torch.int64)
        documents = torch.from_numpy(rows.documents).to(self.device, torch.int64) if self.blueprint.mask_documents else None
        for first in range(0, tokens.shape[0], size):
            part = slice(first, first + size)
            inputs = tokens[part, :-1].contiguous()
            if documents is not None:
                inputs = (inputs, documents[part, :-1].contiguous())
            yield inputs, tokens[part, 1:].contiguous()

    def _grad_norm(self) -> float:
        if self.clipper:
            return self.clipper.norm
        norm = self.engine.get_global_grad_norm()
        return norm.item() if isinstance(norm, torch.Tensor) else float(norm)


def _zero_stage(engine_config: dict) -> int:
    return engine_config.get("zero_optimization", {}).get("stage", 0)


def build_module(blueprint: Blueprint, engine_config: dict) -> torch.nn.Module:
    """The model of this rank: a pipeline stage, or the whole layer list; under ZeRO-3 each parameter is cut as soon as it exists."""
    if blueprint.grid.pipeline.size > 1:
        return DecoderPipeline(blueprint)
    if _zero_stage(engine_config) < 3:
        return Decoder(blueprint)
    grid = blueprint.grid
    with deepspeed.zero.Init(
        data_parallel_group=grid.replicas.group, config_dict_or_path=engine_config, mpu=DeepSpeedTopology(grid)
    ):
        return Decoder(blueprint)
