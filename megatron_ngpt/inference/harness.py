"""A model as lm-eval, EleutherAI's evaluation harness, sees it; `tasks.py` runs its tasks.

lm-eval asks for three things: how likely a continuation is after a context, how likely a whole text is, and what the model writes.
Continuations of the same context (the answers of a multiple choice) share one pass over it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from megatron_ngpt.errors import ConfigError, TaskError
from megatron_ngpt.inference.continuation import Continuation
from megatron_ngpt.inference.generate import continue_batch
from megatron_ngpt.inference.likelihood import Scored, score
from megatron_ngpt.inference.load import LoadedModel
from megatron_ngpt.inference.ranks import shown
from megatron_ngpt.parallel.together import leads, together

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from megatron_ngpt.inference.harness_options import Options, read_options
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lm_eval":
        raise
    raise ConfigError("ngpt harness: lm-eval is not installed; pip install -e '.[eval]'") from None


class HarnessModel(TemplateLM):
    """A loaded model as lm-eval sees it. Data parallel ranks share the documents; ranks of one model work in step.

    Args:
        batch: requests that are put through the model together.

    Attributes:
        at_work: ranks that share the model may be in the middle of a collective.

    Raises:
        TaskError: from what ranks do together outside the model, where another one's task has failed.
    """

    def __init__(self, loaded: LoadedModel, batch: int):
        super().__init__()
        self.loaded, self.batch = loaded, batch
        self._told: set[str] = set()
        self.at_work = False
        self._tokenizer = loaded.tokenizer()
        self._axis = loaded.grid.readers
        self._rank, self._world_size, self._device = self._axis.rank, self._axis.size, loaded.device

    @property
    def eot_token_id(self) -> int:
        """What documents end, and so also begin, with."""
        return self._tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Tokens that the model was trained to see at once."""
        return self.loaded.model.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """The text's ids; the tokenizer adds no special ones."""
        return self._tokenizer.encode(string).tolist()

    def _loglikelihood_tokens(self, requests: list[tuple], disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy continuation) of each (texts, context, continuation)."""
        return self._score([(context, continuation) for _, context, continuation in requests])

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy continuation) of each (context, continuation); no bar of lm-eval's own."""
        with self._working():
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the model's context that predict every token once."""
        owners, pairs = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                owners.append(number)
                pairs.append((context, continuation))
        totals = [0.0] * len(requests)
        with self._working():
            for owner, answer in zip(owners, self._score(pairs), strict=True):
                totals[owner] += answer.log_likelihood
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to one of the request's `until` texts.

        As everywhere in lm-eval, a context is cut on the left so that it and what is written fit the model's context. Where
        `max_gen_toks` (256 if a task does not say) would leave no room for a context, each has half.

        Raises:
            ConfigError: a request's generation_kwargs ask for what is not done here.
        """
        texts: list[str] = [""] * len(requests)
        for part, options in _alike(requests, self.batch):
            most = options.max_tokens
            if most >= self.max_length:
                most = max(1, self.max_length // 2)
                self._tell_once(f"max_gen_toks = {options.max_tokens}: at most {most} tokens are written in a context of {self.max_length}")
            room = max(1, self.max_length - most)
            rows = [Continuation(self._tokenizer, requests[number].args[0], options.until, room=room) for number in part]
            with self._working():
                continue_batch(self.loaded, rows, most, options.sampling, self._tokenizer.size)
            for number, row in zip(part, rows, strict=True):
                texts[number] = row.finish()
        return texts

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        """Scores in the order of the pairs; what is too long loses the left of its context, as everywhere in lm-eval.

        An answer that is longer than the model's context by itself is scored in windows that predict every token of it once.
        """
        owners, fitting = [], []
        for number, (context, then) in enumerate(pairs):
            for before, part in self._windows(context, then):
                owners.append(number)
                fitting.append((before[-(self.max_length + 1 - len(part)) :], part))
        found = [Scored(0.0, True)] * len(pairs)  # what an answer of no tokens has
        for part in shown(list(_neighbours(fitting, self.batch)), "likelihoods"):
            for number, answer in zip(part, score(self.loaded, [fitting[number] for number in part]), strict=True):
                before = found[owners[number]]
                found[owners[number]] = Scored(before.log_likelihood + answer.log_likelihood, before.greedy and answer.greedy)
        return found

    def _windows(self, context: list[int], then: list[int]) -> list[tuple[list[int], list[int]]]:
        if len(then) <= self.max_length:
            return [(context, then)]
        self._tell_once(f"answers longer than the model's context of {self.max_length} tokens are scored in windows of it")
        return list(map(make_disjoint_window, get_rolling_token_windows(then, context[-1], self.max_length, context_len=1)))

    def _tell_once(self, line: str) -> None:
        if line not in self._told and leads():
            print(line, file=sys.stderr, flush=True)
        self._told.add(line)

    @contextmanager
    def _working(self) -> Iterator[None]:
        self.at_work = True
        yield
        self.at_work = False  # not after an error

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """A number of each data rank, [ranks]."""
        all_well()
        found = [torch.empty_like(tensor) for _ in range(self._axis.size)]
        dist.all_gather(found, tensor, group=self._axis.group)
        return torch.stack(found)

    def gather_object(self, obj: Any, dst: int = 0) -> list | None:
        """Every data rank's object, on rank `dst` of them."""
        all_well()
        found = [None] * self._axis.size
        dist.all_gather_object(found, obj, group=self._axis.group)
        return found if self._axis.rank == dst else None

    def barrier(self) -> None:
        """Wait for all ranks."""
        all_well()


def all_well(failed: TaskError | None = None) -> None:
    """Whether the tasks of no rank have failed (collective over the world, a barrier). Raises TaskError on every rank: one has."""

    def tell() -> None:
        if failed:
            raise failed

    together(tell, "tasks")


def _neighbours(pairs: list[tuple[list[int], list[int]]], batch: int) -> Iterator[list[int]]:
    """Numbers of pairs that go together, the longest first: those with the same context, and then those of the same length."""
    order = [number for number, (_, then) in enumerate(pairs) if then]
    order.sort(key=lambda number: (-len(pairs[number][0]), pairs[number][0], -len(pairs[number][1])))
    for first in range(0, len(order), batch):
        yield order[first : first + batch]


def _alike(requests: list, batch: int) -> Iterator[tuple[list[int], Options]]:
    """Numbers of requests with the same options, long contexts first, and the options."""
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
    parts = []
    for key, numbers in groups.items():
        numbers.sort(key=lambda number: -len(requests[number].args[0]))
        options = read_options(json.loads(key), "--tasks")
        parts += [(numbers[first : first + batch], options) for first in range(0, len(numbers), batch)]
    yield from shown(parts, "continuations")
