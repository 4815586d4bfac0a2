"""The model under a DeepSpeed engine, with its masters on the sphere: one object that trains on, and evaluates, a global batch.

A plain `DeepSpeedEngine` runs micro-batches one by one; a `PipelineEngine` runs them through its schedule. Nothing above this module
asks which of the two it is.
"""

from collections.abc import Callable, Iterator

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.batches import Rows
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import TrainingError
from megatron_ngpt.inference.live import LiveModel, live_model
from megatron_ngpt.model.blocks import Block
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.ends import Head
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.pipeline import DecoderPipeline
from megatron_ngpt.model.window import held_positions
from megatron_ngpt.monitor.clock import Clock
from megatron_ngpt.monitor.observer import Observed, Observer
from megatron_ngpt.monitor.probe import SEQUENCES
from megatron_ngpt.parallel.assumptions import checked_shards
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.replicas import divergence
from megatron_ngpt.parallel.shards import Shard, publish_masters, stepped_buffers
from megatron_ngpt.sphere.renormalise import Renormaliser
from megatron_ngpt.training.history import History
from megatron_ngpt.training.optimizer import base_optimizer
from megatron_ngpt.training.update import Outcome, StepResult, Update

Batch = tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], torch.Tensor]  # (what the embedding reads, targets [B, T])


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
        clock: tells where a step's time goes.
        observer: what it has seen of a step `observe` tells.
        history: of losses and gradient norms, part of the run's state.
    """

    def __init__(self, recipe: Recipe, vocabulary: int, engine_config: dict, grid: RankGrid, device: torch.device):
        self.recipe, self.grid, self.device, self.clock = recipe, grid, device, Clock(0, device)
        self.blueprint = Blueprint(
            recipe.model,
            vocabulary,
            grid,
            sequence=recipe.parallel.sequence and grid.tensor.size > 1,
            context_kind=recipe.parallel.context_kind,
            mask_documents=recipe.data.document_boundaries == "mask",
            recompute=recipe.training.recompute,
            ffn_chunks=recipe.training.ffn_chunks,
            offload=recipe.training.offload_activations,
            compile=recipe.training.compile,
        )
        module = build_module(self.blueprint, engine_config)
        self.base = base_optimizer(recipe.optimizer, module)
        mpu = None if grid.pipeline.size > 1 else DeepSpeedTopology(grid)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=self.base, config=engine_config, mpu=mpu, dist_init_required=False
        )
        self.shards: dict[str, Shard] = checked_shards(module, self.optimizer, self.base, grid.replicas)
        compiled = recipe.training.compile and device.type != "cpu"  # there the optimiser's blocks are rescaled, each by two quick passes
        self.renormaliser = Renormaliser(self.shards, grid, self.optimizer, compiled)
        sequences, partitioned = min(SEQUENCES, recipe.training.global_batch), stepped_buffers(self.optimizer) is not None
        self.observer = Observer(module, self.shards, self.blueprint, partitioned, sequences, device)
        self.history = History(recipe.training.skip.deviations, device)
        self.probe_rows = -(-sequences // recipe.training.micro_batch) * recipe.training.micro_batch
        self.update = Update(
            self.optimizer, self.base, module, grid, self.renormaliser, recipe.optimizer.clip, recipe.optimizer.tangent,
            self.history, self.clock, self.observer,
        )  # fmt: skip
        self._head = next((layer for layer in module.modules() if isinstance(layer, Head)), None)

    def initialise(self) -> None:
        """The model of step 0, on the sphere."""
        initialise(self.shards, self.recipe.training.seed)
        self.renormaliser.renormalise()
        self.publish()

    def publish(self) -> None:
        """Let the forward pass use the masters as they are now."""
        publish_masters(self.optimizer)

    def step(self, rows: Rows, lr: float, measure: bool, between: Callable[[], None] = lambda: None) -> Outcome:
        """One update from this rank's rows of the global batch; with `measure` norm errors, memory and losses by source are measured.

        `between` is called between two micro-batches, and may raise: no weight has moved. A pipeline's schedule has no such place.
        """
        by_source = None
        if measure and len(self.recipe.data.train) > 1:
            by_source = self._keep_losses(rows)
        return self._run(rows, lr, measure, between, by_source)

    def repeat(self, rows: Rows) -> StepResult:
        """What an update from this rank's rows of the global batch learns, made without moving anything (collective; waits for the
        device). Bit for bit what a step learnt from the same weights and rows, if nothing is wrong with the machine."""
        return self._run(rows, 0.0, measure=False, between=lambda: None, trial=True).read()

    def _run(
        self, rows: Rows, lr: float, measure: bool, between: Callable[[], None],
        by_source: Callable[[], torch.Tensor] | None = None, trial: bool = False,
    ) -> Outcome:  # fmt: skip
        if self.grid.pipeline.size > 1:
            batches = self._micro_batches(rows)
            return self.update.run(lr, measure, lambda: self.engine.train_batch(batches), self._stage_loss, by_source, trial)
        losses: list[torch.Tensor] = []
        train = lambda: self._train_plain(rows, losses, between)  # noqa: E731
        return self.update.run(lr, measure, train, lambda: torch.stack(losses).mean(), by_source, trial)

    def evaluate(self, rows: Rows) -> float:
        """The mean loss over a global batch, nats a token, from this rank's rows of it."""
        losses = self._forward(rows)
        return losses[0].item() if self.grid.pipeline.size > 1 else self._mean(losses)

    def observe(self, rows: Rows) -> Observed:
        """What the observer has seen of the step before, which it was told to watch, and sees in a forward pass over `rows` (collective).

        Args:
            rows: the first `probe_rows` of the step's global batch, the same on every rank.
        """
        return self.observer.finish(lambda: self._forward(rows))

    def _forward(self, rows: Rows) -> list[torch.Tensor]:
        """The loss of each micro-batch; in a pipeline the mean of all of them, which every rank is told."""
        self.engine.eval()
        with torch.no_grad():
            if self.grid.pipeline.size > 1:
                count = len(rows.tokens) // self.recipe.training.micro_batch
                losses = [self.engine.eval_batch(self._micro_batches(rows), num_micro_batches=count)]
            else:
                losses = [self.engine(inputs, targets) for inputs, targets in self._micro_batches(rows)]
        self.engine.train()
        return losses

    def check_copies(self, step: int) -> None:
        """After `step`, whether ranks that hold the same numbers still do (collective; waits for the device).

        Raises:
            TrainingError: on every rank; some do not: silent corruption.
        """
        if found := divergence(self.engine.module, self.shards, self.grid):
            raise TrainingError(f"step {step}: {found}; stopped before any of it is saved")

    def live(self, tokenizer: Tokenizer) -> LiveModel:
        """The model as it is now, for inference."""
        return live_model(self.engine.module, self.blueprint, self.recipe, tokenizer)

    def _train_plain(self, rows: Rows, losses: list[torch.Tensor], between: Callable[[], None]) -> None:
        for inputs, targets in self._micro_batches(rows):
            if losses:
                between()
            loss = self.engine(inputs, targets)
            losses.append(loss.detach())
            self.engine.backward(loss)
            self.engine.step()

    def _keep_losses(self, rows: Rows) -> Callable[[], torch.Tensor]:
        """Let the head keep what it finds for each token of a step; returns what makes this rank's share of each source's sum of it."""
        numbers, sources = len(self.recipe.data.train), self._on_device(rows.sources)
        knowing = self.grid.tensor.size * self.grid.context.size  # ranks that know the losses of a row, or a part of them each
        if self._head is None:
            return lambda: torch.zeros(numbers, device=self.device)
        self._head.losses.kept = kept = []

        def sums() -> torch.Tensor:
            self._head.losses.kept = None
            of_rows = torch.cat(kept).view(len(sources), -1).mean(1)
            return torch.zeros(numbers, device=self.device).index_add_(0, sources, of_rows / knowing)

        return sums

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        """As int64, without waiting for what the device does: a copy from memory that is not pinned would."""
        host = torch.from_numpy(numbers)
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True).long()

    def _stage_loss(self) -> torch.Tensor | None:
        """The last stage's mean over its micro-batches, which DeepSpeed adds up and tells after its step only."""
        total = self.engine.total_loss
        return None if total is None else total / self.engine.micro_batches

    def _mean(self, losses: list[torch.Tensor]) -> float:
        mean = torch.stack(losses).mean()
        if self.grid.replicas.size > 1:
            dist.all_reduce(mean, group=self.grid.replicas.group)
            mean /= self.grid.replicas.size
        return mean.item()

    def _micro_batches(self, rows: Rows) -> Iterator[Batch]:
        size = self.recipe.training.micro_batch
        held, documents = held_positions(self.blueprint, rows.tokens.shape[1] - 1), None
        read, predicted = (self._on_device(rows.tokens[:, places]) for places in (held, held + 1))
        if self.blueprint.mask_documents:  # looked at on the host, unless they go from stage to stage
            documents = torch.from_numpy(rows.documents[:, :-1]).long()
            documents = documents.to(self.device) if self.grid.pipeline.size > 1 else documents
        for first in range(0, len(read), size):
            part = slice(first, first + size)
            yield (read[part] if documents is None else (read[part], documents[part])), predicted[part]


def _zero_stage(engine_config: dict) -> int:
    return engine_config.get("zero_optimization", {}).get("stage", 0)


def build_module(blueprint: Blueprint, engine_config: dict) -> torch.nn.Module:
    """The model of this rank: a pipeline stage, or the whole layer list; under ZeRO-3 each parameter is cut as soon as it exists, and a
    block's are gathered together, by hooks around the block: what is inside can be compiled, and compiled code runs no hooks."""
    if blueprint.grid.pipeline.size > 1:
        return DecoderPipeline(blueprint)
    if _zero_stage(engine_config) < 3:
        return Decoder(blueprint)
    grid = blueprint.grid
    with deepspeed.zero.Init(
        data_parallel_group=grid.replicas.group, config_dict_or_path=engine_config, mpu=DeepSpeedTopology(grid)
    ):
        decoder = Decoder(blueprint)
    deepspeed.utils.set_z3_leaf_modules(decoder, [Block])
    return decoder
