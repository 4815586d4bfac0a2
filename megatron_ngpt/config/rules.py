"""Rules between keys of a recipe, DeepSpeed's choice and the number of ranks. Each problem says what to choose instead."""

import math
from collections.abc import Iterator

from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice
from megatron_ngpt.config.grid import given_sizes, grid_of
from megatron_ngpt.config.recipe import Model, Recipe


def problems(recipe: Recipe, deepspeed: DeepSpeedChoice | None, world: int) -> list[str]:
    """Everything that does not fit together on `world` ranks, one line each; empty when all does.

    `deepspeed` is None where its JSON could not be read: the rules that need it are then left out.
    """
    found = [*_shape(recipe), *rotation_problems(recipe.model), *_layout(recipe, world), *_batch(recipe, world)]
    found += [*_schedule(recipe), *_run(recipe)]
    found += _profile(recipe, world)
    return found + list(_deepspeed(recipe, deepspeed)) if deepspeed else found


def _shape(recipe: Recipe) -> Iterator[str]:
    model = recipe.model
    if model.hidden % model.heads:
        yield f"model.heads = {model.heads}: must divide model.hidden = {model.hidden}; {_divisors(model.hidden, model.heads)}"
    elif model.head_size % 2:
        yield (
            f"model.heads = {model.heads}: a head of {model.head_size} is odd, and the rotary embedding turns pairs; "
            "choose heads so that hidden / heads is even"
        )
    if model.heads % model.groups:
        choice = _divisors(model.heads, model.groups)
        yield f"model.kv_heads = {model.groups}: must divide model.heads = {model.heads}; {choice}"
    if recipe.optimizer.tangent and model.arch != "ngpt":
        yield f"optimizer.tangent = true: only an nGPT has weights on the sphere; set it to false for model.arch = {model.arch}"


def rotation_problems(model: Model) -> Iterator[str]:
    """What does not fit together in `model.rope_scaling`."""
    scaling, key = model.rope_scaling, "model.rope_scaling"
    if scaling.kind == "none" and scaling.factor > 1:
        yield f"{key}.factor = {scaling.factor:g}: {key}.kind is none; choose kind linear, ntk or yarn, or factor: 1"
    if scaling.kind != "none" and scaling.factor == 1:
        yield f"{key}.factor = 1: {key}.kind = {scaling.kind} needs one above 1: the context over the one before; or choose kind: none"
    if scaling.kind == "yarn" and scaling.original_context is None:
        yield f"{key}.original_context = null: yarn needs the context that the model was trained with before"
    if scaling.kind != "yarn" and scaling.original_context is not None:
        yield f"{key}.original_context = {scaling.original_context}: only yarn uses it; remove it, or choose kind: yarn"
    if scaling.kind == "yarn" and model.rope_base <= 1:
        yield f"model.rope_base = {model.rope_base:g}: yarn goes by wavelengths that grow; choose a base above 1"
    if scaling.kind == "ntk" and model.head_size <= 2:
        yield f"{key}.kind = ntk: a head of {model.head_size} has one wavelength alone, which no base changes; choose linear or yarn"


def _layout(recipe: Recipe, world: int) -> Iterator[str]:
    """Hidden needs no rule of its own (model.embedding_shard: hidden): heads divides it, and tensor divides heads."""
    model, tensor, pipeline = recipe.model, recipe.parallel.tensor, recipe.parallel.pipeline
    cut = {"model.heads": model.heads, "model.ffn": model.ffn_size}
    if model.groups != model.heads:
        cut["model.kv_heads"] = model.groups
    for key, size in cut.items():
        if size % tensor:
            yield f"parallel.tensor = {tensor}: must divide {key} = {size}; {_divisors(size, tensor)}"
    yield from _sequence(recipe)
    if pipeline > model.layers:
        yield f"parallel.pipeline = {pipeline}: more stages than model.layers = {model.layers}; choose 1 to {model.layers}"
    given = given_sizes(recipe.parallel)
    if world % (product := math.prod(given.values())):
        shown = ", ".join(f"parallel.{axis} = {size}" for axis, size in given.items() if size > 1 or axis != "context")
        choice = _divisors(world, product) + _worlds(recipe, world)
        yield f"{shown}: their product {product} must divide the number of ranks, {world}; {choice}"


def _sequence(recipe: Recipe) -> Iterator[str]:
    """The sequence divides into runs of positions, one or two a context rank, and those over tensor ranks where they share it."""
    model, parallel = recipe.model, recipe.parallel
    runs, keys = 1, []
    if parallel.sequence:
        runs, keys = parallel.tensor, [f"parallel.tensor = {parallel.tensor} with sequence: true"]
    if parallel.context > 1:
        ring = parallel.context_kind == "ring"
        runs, keys = runs * parallel.context * (2 if ring else 1), [*keys, f"parallel.context = {parallel.context}"]
        if ring:
            keys.append("two runs of positions a rank of a ring")
    if model.context % runs:
        below = model.context // runs * runs
        choice = " or ".join(str(size) for size in (below, below + runs) if size)
        yield f"model.context = {model.context}: must be a multiple of {runs} ({', '.join(keys)}); choose {choice}"
    heads = model.heads // parallel.tensor
    if parallel.context_kind == "ulysses" and heads % parallel.context and not model.heads % parallel.tensor:
        yield (
            f"parallel.context = {parallel.context}: must divide the {heads} heads of a tensor rank where attention is divided by heads "
            f"(parallel.context_kind: ulysses); {_divisors(heads, parallel.context)}, or context_kind: ring"
        )


def _batch(recipe: Recipe, world: int) -> Iterator[str]:
    try:
        ranks, training = grid_of(world, given_sizes(recipe.parallel)).size("readers"), recipe.training
    except ValueError:
        return                                              # told by _layout; there is no data parallel size to check against
    together = training.micro_batch * ranks
    if training.global_batch % together:
        below = training.global_batch // together * together
        choice = f"{below} or {below + together}" if below else f"{together}"
        yield (
            f"training.global_batch = {training.global_batch}: must be a multiple of training.micro_batch = "
            f"{training.micro_batch} times {ranks} data parallel ranks; choose {choice}, or another micro_batch{_worlds(recipe, world)}"
        )


def _worlds(recipe: Recipe, world: int) -> str:
    """The numbers of ranks on both sides of `world` with which layout and batch of the recipe fit, as a suggestion: nodes may be lost."""
    product, batches = math.prod(given_sizes(recipe.parallel).values()), recipe.training.global_batch / recipe.training.micro_batch
    fitting = [product * ranks for ranks in range(1, int(batches) + 1) if batches % ranks == 0]
    below = [str(size) for size in fitting if size < world][-1:]
    near = below + [str(size) for size in fitting if size > world][:1]
    return f"; as the recipe is, {' or '.join(near)} ranks fit" if near else ""


def _schedule(recipe: Recipe) -> Iterator[str]:
    schedule, steps = recipe.schedule, recipe.training.steps
    decay = schedule.decay_steps or steps
    own_end = schedule.kind == "cosine" and schedule.decay_steps
    end, name = (decay, "schedule.decay_steps") if own_end else (steps, "training.steps")
    if schedule.warmup_steps >= end:
        yield f"schedule.warmup_steps = {schedule.warmup_steps}: must be less than {name} = {end}; choose 0 to {end - 1}"
    if schedule.min_lr > recipe.optimizer.lr:
        yield f"schedule.min_lr = {schedule.min_lr}: above optimizer.lr = {recipe.optimizer.lr}; choose a rate below it"


def _run(recipe: Recipe) -> Iterator[str]:
    """Keys of the run that contradict each other."""
    training = recipe.training
    if training.offload_activations and training.recompute != "full":
        yield (
            f"training.offload_activations = true: what goes to host memory is what training.recompute: full keeps, and it is "
            f"{training.recompute}; choose full, or offload_activations: false"
        )
    held = recipe.model.context // max(1, recipe.parallel.context)
    if training.ffn_chunks > held:
        yield f"training.ffn_chunks = {training.ffn_chunks}: a rank has {held} tokens of each sample; choose at most that many"
    if training.eval_tasks and not training.eval_every:
        yield f"training.eval_tasks = {training.eval_tasks}: training.eval_every is 0, and there are no evaluations; choose when they are"
    if recipe.training.eval_every and not recipe.data.valid:
        yield f"training.eval_every = {recipe.training.eval_every}: data.valid is empty; add a dataset there or choose 0"
    if recipe.checkpoint.initial and recipe.checkpoint.resume not in ("auto", "never"):
        yield (
            f"checkpoint.initial = {recipe.checkpoint.initial}: a run that resumes {recipe.checkpoint.resume} has its weights "
            f"from there; remove initial, or choose checkpoint.resume: never"
        )


def _profile(recipe: Recipe, world: int) -> Iterator[str]:
    wanted, key = recipe.training.profile, "training.profile"
    if wanted.steps and (len(wanted.steps) != 2 or wanted.steps[0] > wanted.steps[1]):
        yield f"{key}.steps = {wanted.steps}: must be the first step and the last one, such as [10, 12]; or [] for none"
    elif wanted.steps and wanted.steps[0] > recipe.training.steps:
        yield f"{key}.steps = {wanted.steps}: the run ends at training.steps = {recipe.training.steps}; choose steps before that"
    if beyond := [rank for rank in wanted.ranks if rank >= world]:
        yield f"{key}.ranks = {wanted.ranks}: there is no rank {beyond[0]} of {world}; choose from 0 to {world - 1}"


def _deepspeed(recipe: Recipe, choice: DeepSpeedChoice) -> Iterator[str]:
    where = f"deepspeed = {recipe.deepspeed}"
    if recipe.parallel.pipeline > 1 and choice.zero_stage > 1:
        yield (
            f"{where}: ZeRO-{choice.zero_stage} with parallel.pipeline = {recipe.parallel.pipeline}: DeepSpeed's pipeline "
            f"runs with ZeRO 0 or 1; choose {'bf16-' if choice.bf16 else ''}zero1.json, or parallel.pipeline: 1"
        )
    if recipe.parallel.pipeline > 1 and choice.offload and choice.zero_stage == 1:
        yield f"{where}: offload does not work under a pipeline; choose a file without offload, or parallel.pipeline: 1"
    if choice.bf16 and choice.zero_stage == 0:
        yield f"{where}: bf16 keeps fp32 masters only under ZeRO; choose bf16-zero1.json (or 2, 3), or zero0.json for fp32"


def _divisors(size: int, near: int) -> str:
    """The divisors of `size` on both sides of `near`, as a suggestion."""
    below = max(number for number in range(1, min(near, size) + 1) if size % number == 0)
    above = next((number for number in range(near + 1, size + 1) if size % number == 0), None)
    return f"choose {below} or {above}" if above else f"choose {below}"
