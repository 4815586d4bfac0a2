"""The sections of a recipe. Each key's description is its help text; each default is what a run without the key uses.

Lengths are in tokens, batch sizes in sequences, times in optimiser steps.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0, lt=2**31)]
NotNegative = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A group of keys: unknown keys are refused, types are strict, values never change after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Scale(Section):
    """A learned scale: effective = stored · init / scale, and stored starts at `scale`."""

    init: float = Field(1.0, gt=0, description="effective value at the start")
    scale: float | None = Field(None, gt=0, description="stored value at the start; null = 1/√hidden")


class AlphaScale(Scale):
    """Eigen learning rates start small."""

    init: float = Field(0.05, gt=0, description="effective value at the start")


class FeedForwardScale(Scale):
    """Scales of the feed-forward's halves are stored as they act."""

    scale: float = Field(1.0, gt=0, description="stored value at the start")


class Scales(Section):
    """The learned scales of nGPT (paper, section 2.5)."""

    alpha: AlphaScale = Field(AlphaScale(), description="eigen learning rates of the attention and feed-forward steps")
    qk: Scale = Field(Scale(), description="scale of normalised queries and keys")
    up: FeedForwardScale = Field(FeedForwardScale(), description="scale of the feed-forward's linear half")
    gate: FeedForwardScale = Field(FeedForwardScale(), description="scale of the feed-forward's gated half")
    logit: Scale = Field(Scale(), description="scale of each vocabulary entry's logit")


class RopeScaling(Section):
    """How the rotary embedding reaches beyond the context that the model was trained with."""

    kind: Literal["none", "linear", "ntk", "yarn"] = Field(
        "none", description="linear: positions divided; ntk: a larger base; yarn: wavelengths by their length, sharper attention"
    )
    factor: float = Field(1.0, ge=1, description="how many times the context before")
    original_context: Positive | None = Field(None, description="under yarn, which needs it: the context before, in tokens")


class Model(Section):
    """The shape of the network."""

    arch: Literal["ngpt", "gpt"] = Field("ngpt", description="ngpt: normalized Transformer; gpt: Llama-style baseline")
    layers: Positive = Field(4, description="number of blocks")
    hidden: Positive = Field(256, description="width of the residual stream")
    heads: Positive = Field(4, description="query heads")
    kv_heads: Positive | None = Field(None, description="key/value heads (grouped-query attention); null = heads")
    ffn: Positive | None = Field(None, description="width of the feed-forward; null = 4 · hidden")
    context: Positive = Field(1024, description="tokens a sample trains on")
    vocab: Positive | None = Field(None, description="vocabulary entries; null = the tokenizer's")
    rope_base: float = Field(10000.0, gt=0, description="base of the rotary embedding's wavelengths")
    rope_scaling: RopeScaling = Field(RopeScaling(), description="for a context longer than before")
    norm_eps: float = Field(1e-6, gt=0, description="added to the mean square in the baseline's norms; nGPT has none")
    update: Literal["lerp", "slerp"] = Field("lerp", description="how a block moves the hidden state on the sphere")
    embedding_shard: Literal["vocab", "hidden"] = Field("vocab", description="how tensor ranks split the input embedding")
    scales: Scales = Field(Scales(), description="initial values of nGPT's learned scales")
    residual_dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the hidden state between blocks")

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward."""
        return self.ffn or 4 * self.hidden

    @property
    def rope_theta(self) -> float:
        """The base that the rotary embedding is computed with: under ntk such that the longest wavelength grows by `factor`."""
        if self.rope_scaling.kind != "ntk":
            return self.rope_base
        return self.rope_base * self.rope_scaling.factor ** (self.head_size / (self.head_size - 2))


class Parallel(Section):
    """How the model is cut; data parallel size = world size / (tensor · context · pipeline)."""

    tensor: Positive = Field(1, description="ranks that share every layer's matrices")
    context: Positive = Field(1, description="ranks that the sequence of every sample is divided over, through all layers")
    context_kind: Literal["ulysses", "ring"] = Field(
        "ulysses", description="ulysses: for attention, slices of the sequence become slices of heads; ring: keys and values travel"
    )
    pipeline: Positive = Field(1, description="stages the layers are divided over")
    sequence: bool = Field(False, description="split activations between blocks over the tensor ranks")


class Dataset(Section):
    """One weighted source of tokens."""

    prefix: Text = Field(description="path of PREFIX.bin and PREFIX.idx without the suffix; may be a glob")
    weight: float | None = Field(None, gt=0, description="share in the blend; null = in proportion to tokens")
    split: float | None = Field(
        None, gt=0, lt=1, description="0.98: under train the first 98% of documents, under valid those after them; null = all"
    )
    name: Text | None = Field(None, description="the name its loss is reported by; null = made from the prefix")


class Data(Section):
    """What is trained on."""

    tokenizer: Text = Field(description="path of the SentencePiece model")
    train: list[Dataset] = Field(min_length=1, description="weighted training datasets")
    valid: list[Dataset] = Field([], description="validation datasets, each evaluated on its own")
    document_boundaries: Literal["ignore", "mask"] = Field(
        "ignore", description="mask: attention and positions restart at each document"
    )


class Optimizer(Section):
    """AdamW as in the paper."""

    name: Literal["adamw"] = Field("adamw", description="the optimiser")
    lr: Rate = Field(15e-4, description="peak learning rate")
    betas: list[Decay] = Field([0.9, 0.95], min_length=2, max_length=2, description="decay of the first and second moment")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: Rate = Field(0.0, description="decoupled decay of matrices (scales and norms never decay)")
    clip: Rate = Field(1.0, description="largest global gradient norm; 0 = no clipping")
    tangent: bool = Field(False, description="remove each spherical gradient's component along its vector before the update")


class Schedule(Section):
    """The learning rate over time."""

    kind: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="cosine: reaches min_lr at decay_steps; wsd: falls over the last decay_steps steps"
    )
    warmup_steps: NotNegative = Field(0, description="steps of linear warm-up (nGPT needs none)")
    decay_steps: Positive | None = Field(None, description="end (cosine) or length (wsd) of the decay; null = training.steps")
    min_lr: Rate = Field(0.0, description="rate at the end of the decay")


class Profile(Section):
    """What a run looks at closely: see docs/monitoring.md."""

    steps: list[Positive] = Field([], max_length=2, description="first and last step of a profile; none = only when SIGUSR2 asks for one")
    ranks: list[NotNegative] = Field([0], description="ranks that write one")


class Skip(Section):
    """What becomes of updates that would do harm: see docs/numerical-trouble.md."""

    deviations: Rate = Field(
        200.0, description="a loss or gradient norm so many robust deviations above its last 128 is vetoed; 0 = only one that is not finite"
    )
    in_a_row: Positive = Field(3, description="vetoed steps in a row that roll the run back to its last checkpoint, to skip their samples")


class Training(Section):
    """The run."""

    steps: Positive = Field(1000, description="optimiser steps of the whole run")
    global_batch: Positive = Field(32, description="sequences a step trains on, over all ranks")
    micro_batch: Positive = Field(4, description="sequences a data rank puts through one forward pass")
    seed: int = Field(0, ge=0, lt=2**63, description="fixes the initial model and the order of the data")
    eval_every: NotNegative = Field(0, description="steps between evaluations; 0 = none")
    eval_batches: Positive = Field(10, description="global batches an evaluation reads from each validation dataset")
    eval_tasks: list[Text] = Field([], description="tasks of lm-eval that every evaluation runs, by name")
    eval_tasks_path: Text | None = Field(None, description="directory of task files of your own")
    eval_tasks_limit: Positive | None = Field(None, description="first documents of each task; null = all")
    log_every: Positive = Field(1, description="steps between lines of metrics.jsonl")
    output: Text = Field(description="run directory")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="selective: recompute what takes no product or attention; full: keep only each block's input"
    )
    ffn_chunks: Positive = Field(1, description="parts of the sequence that go through the feed-forward one by one, recomputed; 1 = whole")
    offload_activations: bool = Field(False, description="keep the blocks' inputs in host memory (with recompute: full)")
    compile: bool = Field(False, description="compile each block with torch.compile")
    profile: Profile = Field(Profile(), description="traces of some steps")
    skip: Skip = Field(Skip(), description="updates that would do harm")


class Checkpoint(Section):
    """What is kept of a run."""

    every: NotNegative = Field(0, description="steps between checkpoints; 0 = one, at the end")
    keep: Positive = Field(2, description="newest checkpoints that stay on disk")
    keep_every: NotNegative = Field(0, description="checkpoints whose step is a multiple of this stay for good; 0 = none")
    initial: Text | None = Field(None, description="exported model that training starts from at step 0")
    resume: Text = Field("auto", description="auto: newest good checkpoint of the run directory; never; or a checkpoint's path")


class Monitor(Section):
    """What a run tells of itself."""

    every: NotNegative = Field(
        100, description="steps between measurements of every layer: scales, angles, entropies, gradients by kind; 0 = none"
    )
    loggers: list[Text] = Field(
        ["tensorboard"], description="beside metrics.jsonl: tensorboard, csv, wandb, or a class of your own as package.module:Class"
    )


class Watchdog(Section):
    """How long a rank may stay without getting further, in seconds, before every rank is ended; 0 = for ever."""

    start: NotNegative = Field(600, description="until the first step is over; a rank that is missing is waited for as long")
    step: NotNegative = Field(600, description="in a step")
    save: NotNegative = Field(1800, description="while a checkpoint is waited for, without reading or writing")
    evaluation: NotNegative = Field(1800, description="in an evaluation: for a batch of a loss, for all tasks of lm-eval together")


class Recipe(Section):
    """A whole run in one file."""

    model: Model = Model()
    parallel: Parallel = Parallel()
    data: Data
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training
    checkpoint: Checkpoint = Checkpoint()
    monitor: Monitor = Monitor()
    watchdog: Watchdog = Watchdog()
    deepspeed: Text = Field("zero1", description="DeepSpeed JSON that owns ZeRO, precision: the name of a shipped one, or a path")
