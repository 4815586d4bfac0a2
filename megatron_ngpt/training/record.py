"""What a checkpoint remembers of a run beside its tensors, and whether a recipe continues it: what makes another model or other data
is refused, what may change is told."""

import subprocess
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import megatron_ngpt
from megatron_ngpt.checkpoint.catalogue import Catalogue
from megatron_ngpt.checkpoint.exported import TOKENIZER
from megatron_ngpt.checkpoint.seal import read_state
from megatron_ngpt.config.recipe import Optimizer, Recipe, Schedule
from megatron_ngpt.data.batches import Opened
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.training.phase import Phase, phases_of
from megatron_ngpt.training.schedule import learning_rate

ROPE_KEYS = ("rope_base", "rope_scaling")  # how positions are turned, which may follow the context; told
FREE_MODEL_KEYS = {"embedding_shard", "residual_dtype", "context", *ROPE_KEYS}  # the first two are layout and precision
FREE_SECTIONS = ("optimizer", "schedule", "training", "parallel")
UNTOLD_KEYS = {"training.output", "training.seed"}  # where the run lies is no change of it; the seed is judged with the data


def state_of(recipe: Recipe, step: int, vocabulary: int, fingerprint: str, code: str, phases: list[Phase], trouble: dict) -> dict:
    """The state that a checkpoint of `step`, in the last of `phases`, carries.

    The learning rate and the samples of a step are functions of the recipe, the step, where its phase began and what it skips, and nothing
    draws random numbers once the model is made from the seed: `recipe` (with the seed), `step` and `phases` are the schedule's, the data's
    and the random state. `trouble` is the verdict's (`Trouble.state`).
    """
    return {
        "samples": phases[-1].samples_at(step),
        "tokens": phases[-1].tokens_at(step),
        "phases": [asdict(phase) for phase in phases],
        **trouble,
        "fingerprint": fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "vocabulary": vocabulary,
        "tokenizer": recipe.data.tokenizer,
        "saved": time.strftime("%Y-%m-%d %H:%M:%S"),
        "code": code,
        "packages": packages(),
    }


def packages() -> dict[str, str]:
    """The versions of those that a run's numbers depend on."""
    return {name: version(name) for name in ("torch", "deepspeed")}


def code_version() -> str:
    """The version of the project, with the commit where it runs from a git checkout (`+` = changed since)."""
    root = Path(megatron_ngpt.__file__).parents[1]
    if not (root / ".git").exists():
        return megatron_ngpt.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return megatron_ngpt.__version__
    return f"{megatron_ngpt.__version__} {commit}"


def contradictions(state: dict, recipe: Recipe, data: Opened, fingerprint: str) -> list[str]:
    """A line for each value of the recipe with which the run of a checkpoint's `state` can't go on; both values are in it."""
    problems = []
    old, new = state["recipe"], recipe.model_dump(mode="json")
    for key, value in new["model"].items():
        if key not in FREE_MODEL_KEYS | {"vocab"} and old["model"].get(key) != value:
            problems.append(_line(f"model.{key}", value, old["model"].get(key)))
    phase_begins = new["model"]["context"] != old["model"]["context"]  # with samples, a batch and an order of its own
    if new["training"]["global_batch"] != old["training"]["global_batch"] and not phase_begins:  # else no step says its samples
        problems.append(_line("training.global_batch", new["training"]["global_batch"], old["training"]["global_batch"]))
    trained, given = tokenizer_sha256(state), data.tokenizer.sha256
    if trained not in (None, given):
        shown = [f"{path} (SHA-256 {digest[:12]})" for path, digest in ((recipe.data.tokenizer, given), (state["tokenizer"], trained))]
        problems.append(_line("data.tokenizer", *shown))
    if data.vocabulary != state["vocabulary"]:
        problems.append(_line("model.vocab", data.vocabulary, state["vocabulary"]))
    may_differ = phase_begins and new["training"]["seed"] == old["training"]["seed"] and new["data"]["train"] != old["data"]["train"]
    if fingerprint != state["fingerprint"] and not may_differ:
        problems.append(_data_line(old, new))
    return problems


def tokenizer_sha256(state: dict) -> str | None:
    """Of the tokenizer that lies in a checkpoint."""
    return state["files"].get(TOKENIZER, {}).get("sha256")


def continued(catalogue: Catalogue, recipe: Recipe, data: Opened, fingerprint: str) -> tuple[Path | None, list[str], list[Phase]]:
    """The checkpoint that the recipe goes on from (None: none, it begins at step 0), what to tell a person about that, and the run's
    phases with the one to come.

    A run asks before it starts in earnest, and so does `ngpt check`. Raises ConfigError or CheckpointError if it can't go on.
    """
    found, notes = catalogue.find(recipe.checkpoint.resume)
    if found is None:
        return None, notes, phases_of(recipe)
    state = read_state(found)
    check_continues(state, recipe, data, fingerprint)
    notes += [f"continues from {found}", *_phase_change(state, recipe), *changes(state, recipe), *_rate_change(state, recipe)]
    return found, notes, phases_of(recipe, state)


def check_continues(state: dict, recipe: Recipe, data: Opened, fingerprint: str) -> None:
    """Raises ConfigError with every contradiction."""
    problems = contradictions(state, recipe, data, fingerprint)
    if problems:
        raise ConfigError(*problems)


def changes(state: dict, recipe: Recipe) -> list[str]:
    """What the recipe changes of the checkpoint's run, of what may change: `section.key: old → new`."""
    found = []
    old, new = state["recipe"], recipe.model_dump(mode="json")
    told = [("model", key) for key in ROPE_KEYS] + [("data", "document_boundaries")]
    told += [(section, key) for section in FREE_SECTIONS for key in new[section] if f"{section}.{key}" not in UNTOLD_KEYS]
    for section, key in told:
        found += _changed(f"{section}.{key}", old[section].get(key), new[section][key])
    if state["recipe"]["deepspeed"] != recipe.deepspeed:
        found.append(f"deepspeed: {state['recipe']['deepspeed']} → {recipe.deepspeed}")
    return found


def _changed(key: str, before, value) -> list[str]:
    """A line if a value is another, or one for each key in it that has another value."""
    if isinstance(value, dict) and isinstance(before, dict):
        return [line for part in value for line in _changed(f"{key}.{part}", before.get(part), value[part])]
    return [] if before == value else [f"{key}: {before} → {value}"]


def _phase_change(state: dict, recipe: Recipe) -> list[str]:
    """What it means that the context is another; nothing if it is not."""
    phase, before, step = phases_of(recipe, state)[-1], state["recipe"], state["step"]
    if phase.after < step:
        return []
    line = (
        f"model.context: {before['model']['context']} → {phase.context}: a phase begins after step {step}, its samples are ordered anew "
        f"over all of data.train; none is left out, and text of the {phase.tokens:,} tokens before may come again"
    )
    trained = [entry.model_dump(mode="json") for entry in recipe.data.train]
    return [line, *_changed("data.train", before["data"]["train"], trained)]


def _rate_change(state: dict, recipe: Recipe) -> list[str]:
    """A line if the next step's learning rate is another than it would have been: a schedule stretched to more steps jumps, say."""
    step, old = state["step"], state["recipe"]
    then = Schedule.model_validate(old["schedule"]), Optimizer.model_validate(old["optimizer"]), old["training"]["steps"]
    if step >= recipe.training.steps:
        return []
    next_rate = learning_rate(recipe.schedule, recipe.optimizer, recipe.training.steps, step + 1)
    if next_rate == learning_rate(*then, step + 1):
        return []
    return [f"learning rate: {learning_rate(*then, step):.4g} at step {step}, {next_rate:.4g} at step {step + 1}"]


def _line(key: str, value, before) -> str:
    return f"{key} = {value}: the checkpoint was trained with {before}; use that, or start afresh with another training.output"


def _data_line(old: dict, new: dict) -> str:
    pairs = [
        ("training.seed", new["training"]["seed"], old["training"]["seed"]),
        ("data.train", new["data"]["train"], old["data"]["train"]),
    ]
    for key, value, before in pairs:
        if value != before:
            return _line(key, value, before)
    return (
        f"data.train = {new['data']['train']}: the files under these names are not the ones the checkpoint was trained on; "
        f"put those back, or start afresh with another training.output"
    )
