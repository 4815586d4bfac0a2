"""Everything about a run that can be refused, refused before torch and DeepSpeed are imported."""

import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from megatron_ngpt.checkpoint.catalogue import Catalogue
from megatron_ngpt.checkpoint.exported import differences, read_config, tensor_files
from megatron_ngpt.checkpoint.ownership import Ownership, user_of
from megatron_ngpt.config import rules
from megatron_ngpt.config.costs.memory import memory
from megatron_ngpt.config.costs.share import Share
from megatron_ngpt.config.costs.traffic import traffic
from megatron_ngpt.config.costs.work import checkpoint_bytes, parameters
from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice, read_deepspeed
from megatron_ngpt.config.grid import Grid, given_sizes, grid_of
from megatron_ngpt.config.load import Reading, read_recipe
from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.console import in_bytes
from megatron_ngpt.data.batches import BatchSource, Opened, open_data, training_batches
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.monitor import loggers
from megatron_ngpt.training.directory import nearest, output_problems
from megatron_ngpt.training.record import continued
from megatron_ngpt.training.schedule import last_rate


@dataclass(frozen=True)
class Ready:
    """A run that nothing speaks against: its recipe, DeepSpeed's choice, number of ranks, what was opened to find that out, which the run
    goes on with, and what there is to tell about the checkpoint that it continues from, as far as a first look can tell; on rank 0 of one
    that starts also the ownership of its run directory."""

    recipe: Recipe
    deepspeed: DeepSpeedChoice
    ranks: int
    data: Opened
    batches: BatchSource
    notes: tuple[str, ...] = ()
    ownership: Ownership | None = None

    @property
    def vocabulary(self) -> int:
        """Entries of the model's vocabulary, unpadded."""
        return self.data.vocabulary

    @property
    def grid(self) -> Grid:
        """How the ranks are divided."""
        return grid_of(self.ranks, given_sizes(self.recipe.parallel))


def preflight(recipe_path: str, overrides: list[str] | tuple[str, ...], ranks: int) -> Ready:
    """The run that the recipe describes on `ranks` ranks. Raises one ConfigError with every problem, one line each."""
    if ranks < 1:
        raise ConfigError(f"ranks = {ranks}: must be at least 1")
    reading = read_recipe(recipe_path, overrides)
    problems = list(reading.problems)
    if reading.recipe is None:
        raise ConfigError(*problems)
    recipe = reading.recipe
    choice, further = _read_choice(recipe)
    opened, unfit = open_data(recipe)
    further += rules.problems(recipe, choice, ranks) + unfit
    further += output_problems(Path(recipe.training.output)) + _checkpoint_problems(recipe, opened.vocabulary)
    further += loggers.problems(recipe.monitor.loggers) + _task_problems(recipe)
    problems += [line for line in further if not _follows_from(line, reading)]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    ready = Ready(recipe, choice, ranks, opened, training_batches(recipe, opened))
    return replace(ready, notes=tuple(_continues(ready)))


def summary(ready: Ready) -> str:
    """One line: layout, parameters, memory a rank, a checkpoint's size."""
    recipe, parallel, grid = ready.recipe, ready.recipe.parallel, ready.grid
    count = parameters(recipe.model, ready.vocabulary)
    needed = memory(recipe, ready.deepspeed, ready.vocabulary, ready.ranks)
    accumulation = recipe.training.global_batch // (recipe.training.micro_batch * grid.size("readers"))
    ranks = f"{ready.ranks} rank{'s' if ready.ranks > 1 else ''}"
    host = f" and {in_bytes(needed.offloaded)} of host memory" if needed.offloaded else ""
    return (
        f"{ranks} = tensor {parallel.tensor}{' (sequence parallel)' if parallel.sequence else ''} × "
        f"{f'context {parallel.context} ({parallel.context_kind}) × ' if parallel.context > 1 else ''}"
        f"pipeline {parallel.pipeline} × data {grid.size('data')}, {ready.deepspeed.name}, "
        f"gradient accumulation {accumulation}; {recipe.model.arch}, {count:,} parameters; "
        f"about {in_bytes(needed.device)}{host} a rank "
        f"(weights {in_bytes(needed.weights)}, gradients {in_bytes(needed.gradients)}, optimiser {in_bytes(needed.optimiser)}, "
        f"activations {in_bytes(needed.activations)}, logits {in_bytes(needed.logits)}, buffers {in_bytes(needed.buffers)}); "
        f"a checkpoint takes {in_bytes(checkpoint_bytes(recipe.model, ready.vocabulary))}"
        f"{_moved(ready)}{'; ' + rate if (rate := last_rate(recipe)) else ''}"
    )


def _moved(ready: Ready) -> str:
    """What the collectives of a step move for the rank that takes part in most of it."""
    shares = (Share(ready.recipe, ready.deepspeed, ready.vocabulary, ready.ranks, stage) for stage in range(ready.grid.size("pipeline")))
    most = max(sum(one.nbytes for one in traffic(share)) for share in shares)
    return f"; collectives move {in_bytes(most)} a step" if most else ""


@dataclass(frozen=True)
class Room:
    """Bytes `free` in the directory `where` checkpoints will lie, and `asked` for beyond those that are there: by the ones that the run
    keeps, and the one that it writes, `one` each."""

    where: Path
    free: int
    asked: int
    one: int


def room(ready: Ready) -> Room:
    """For checkpoints, as it is now."""
    recipe = ready.recipe
    catalogue = Catalogue(Path(recipe.training.output))
    where, one = nearest(catalogue.directory), checkpoint_bytes(recipe.model, ready.vocabulary)
    more = recipe.checkpoint.keep + 1 - min(recipe.checkpoint.keep, len(catalogue.named()))
    return Room(where, shutil.disk_usage(where).free, more * one, one)


def space_warnings(ready: Ready) -> list[str]:
    """A line if checkpoints find no room: no reason to refuse a run that others may make room for."""
    found, keep = room(ready), ready.recipe.checkpoint.keep
    if found.free >= found.asked:
        return []
    asked = f"checkpoint.keep = {keep} and one that is being written take {in_bytes(found.asked)} more, {in_bytes(found.one)} each"
    return [f"warning: {in_bytes(found.free)} are free in {found.where}: {asked}"]


def in_use(ready: Ready) -> list[str]:
    """A line if another run has the run directory just now, as far as a first look can tell."""
    user = user_of(Path(ready.recipe.training.output))
    return [f"warning: training.output = {ready.recipe.training.output} is in use by {user}"] if user else []


def _read_choice(recipe: Recipe) -> tuple[DeepSpeedChoice | None, list[str]]:
    """DeepSpeed's choice, None with the problems of its JSON."""
    try:
        return read_deepspeed(recipe.deepspeed), []
    except ConfigError as error:
        return None, list(error.problems)


def _follows_from(line: str, reading: Reading) -> bool:
    """Whether a problem may only come from the default that stands in for a wrong key."""
    return any(key in line for key in reading.replaced)


def _continues(ready: Ready) -> list[str]:
    """What the run will tell about the checkpoint that it will find. Raises what the run itself would, ConfigError or CheckpointError, if
    it can't go on from there."""
    recipe = ready.recipe
    catalogue = Catalogue(Path(recipe.training.output))
    if catalogue.newest() is None and catalogue.nameless():
        return []  # killed between two moves; the run gives it back its name, and judges it then
    if catalogue.directory.is_dir() or recipe.checkpoint.resume not in ("auto", "never"):
        return continued(catalogue, recipe, ready.data, ready.batches.fingerprint)[1]
    return []


def _checkpoint_problems(recipe: Recipe, vocabulary: int | None) -> list[str]:
    problems = []
    output, resume = Path(recipe.training.output), recipe.checkpoint.resume
    if resume == "never":
        steps = sorted((output / "checkpoints").glob("step-*"))
        if steps:
            problems.append(
                f"checkpoint.resume = never: {output} has checkpoints up to {steps[-1].name}, which a new run would overwrite; "
                f"choose another training.output, or resume: auto to go on from there (--checkpoint.resume=auto)"
            )
    elif Catalogue(output).named():
        return []  # which win over what the run began with
    elif resume != "auto" and not Path(resume).is_dir():
        problems.append(f"checkpoint.resume = {resume}: no such directory; choose auto, never or the path of a checkpoint")
    if recipe.checkpoint.initial:
        problems += _initial_problems(recipe, vocabulary)
    return problems


def _initial_problems(recipe: Recipe, vocabulary: int | None) -> list[str]:
    """Whether the path holds an exported model, or a Llama, that the recipe's model can start from; the vocabulary is None where the
    tokenizer cannot be read, which is told elsewhere."""
    path = Path(recipe.checkpoint.initial)
    key = f"checkpoint.initial = {recipe.checkpoint.initial}"
    try:
        config = read_config(path, key)
        tensor_files(path, key)
        return differences(config, recipe.model, vocabulary, key)
    except ConfigError as error:
        return error.problems


def _task_problems(recipe: Recipe) -> list[str]:
    """What speaks against `training.eval_tasks` before lm-eval, which takes seconds to load, is asked for them."""
    problems, path = [], recipe.training.eval_tasks_path
    if recipe.training.eval_tasks and find_spec("lm_eval") is None:
        problems.append(f"training.eval_tasks = {recipe.training.eval_tasks}: lm-eval is not installed; pip install -e '.[eval]'")
    if path and not Path(path).is_dir():
        problems.append(f"training.eval_tasks_path = {path}: no such directory; give the one that holds your tasks' YAML files")
    return problems
