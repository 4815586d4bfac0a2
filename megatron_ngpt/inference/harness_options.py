"""What lm-eval's tasks ask of generation, in the words of their `generation_kwargs`: done as asked, or refused before any work."""

from dataclasses import dataclass

from lm_eval.models.utils import normalize_gen_kwargs

from megatron_ngpt.errors import ConfigError
from megatron_ngpt.inference.sampling import Sampling

DONE = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")
NEUTRAL = {  # values that ask for nothing
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1, "typical_p": 1, "no_repeat_ngram_size": 0,
    "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0, "early_stopping": False, "use_cache": True,
}


@dataclass(frozen=True)
class Options:
    """Texts that end a continuation, the most tokens of one, and how they are drawn."""

    until: list[str]
    max_tokens: int
    sampling: Sampling


def read_options(given: dict, where: str) -> Options:
    """The options of one task or request, `where`. Raises ConfigError, a line each, for what is not done here and for what is no value."""
    try:
        found = normalize_gen_kwargs(given)
        sampling = Sampling(
            float(found.get("temperature", 1.0)) if found["do_sample"] else 0.0,
            float(found.get("top_p") or 1.0),
            top_k=int(found.get("top_k") or 0),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: generation_kwargs: {error}") from None
    problems = [
        f"{where}: generation_kwargs {key} = {value}: not done here; what is: {', '.join(DONE)}"
        for key, value in found.items()
        if key not in DONE and value is not None and value != NEUTRAL.get(key)
    ]
    if found["max_gen_toks"] < 1:
        problems.append(f"{where}: generation_kwargs max_gen_toks = {found['max_gen_toks']}: must be at least 1")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.top_k < 0:
        problems.append(f"{where}: generation_kwargs: temperature and top_k must be at least 0, top_p in 0 to 1")
    if problems:
        raise ConfigError(*problems)
    return Options(found["until"], found["max_gen_toks"], sampling)


def check_tasks(tasks: dict, key: str) -> None:
    """Refuse the loaded tasks (by name; `key` named them) that ask for what is not done here, all problems at once."""
    problems = []
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            try:
                read_options(dict(task.config.generation_kwargs or {}), f"{key} {name}")
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(*problems)
