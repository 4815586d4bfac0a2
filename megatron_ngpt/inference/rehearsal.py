"""lm-eval's tasks on answers that are made up: what their own code, often a user's, can't do is found before a model works for them."""

from types import SimpleNamespace

from lm_eval import simple_evaluate
from lm_eval.api.model import LM

from megatron_ngpt.errors import ConfigError

DOCUMENTS = 8  # of each task: its templates and its code are the same for all


class MadeUp(LM):
    """A model that finds every answer as unlikely as any other, and writes nothing; as untrained ones may."""

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy continuation) of each request."""
        return [(-1.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text."""
        return [-1.0] * len(requests)

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """What is written after each context."""
        return [""] * len(requests)


def rehearse(tasks: dict, limit: int | None, key: str) -> None:
    """Run loaded tasks (by name; `key` named them) on their first `DOCUMENTS`, or `limit` if that is less; no generator of random
    numbers is seeded.

    Raises:
        ConfigError: tasks that fail, a line each.
    """
    few = min(limit or DOCUMENTS, DOCUMENTS)
    problems, unseeded = [], dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"))
    for name, task in tasks.items():
        alone = SimpleNamespace(load=lambda _, name=name, task=task: {"tasks": {name: task}, "groups": {}}, task_index={})
        try:
            simple_evaluate(
                MadeUp(), tasks=[name], task_manager=alone, limit=few, bootstrap_iters=0, log_samples=False, **unseeded
            )
        except Exception as error:
            said = " ".join(str(error).split())
            problems.append(f"{key} {name}: fails on answers that are made up: {type(error).__name__}: {said}; mend it, or leave it out")
    if problems:
        raise ConfigError(*problems)
