"""`ngpt generate`: a model continues prompts, a batch of them at a time."""

import codecs
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_ngpt.console import shows_everything
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.foreign import read_json, what_is_wrong
from megatron_ngpt.inference.cache import KeyValueCache
from megatron_ngpt.inference.continuation import Continuation
from megatron_ngpt.inference.forward import extend, next_logits, pad
from megatron_ngpt.inference.load import LoadedModel, load_model
from megatron_ngpt.inference.ranks import from_last_stage, joined
from megatron_ngpt.inference.sampling import Sampling, choose
from megatron_ngpt.parallel.grid import Axis


@dataclass
class Speed:
    """Tokens and seconds: of prompts, and of those written one after another (the first follows from the prompt itself)."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, other: "Speed") -> None:
        """Count what was done after this."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def beside(self, other: "Speed") -> "Speed":
        """This and what other ranks did at the same time."""
        seconds = max(self.prompt_seconds, other.prompt_seconds), max(self.seconds, other.seconds)
        return Speed(self.prompt_tokens + other.prompt_tokens, seconds[0], self.tokens + other.tokens, seconds[1])

    def __str__(self) -> str:
        parts = [("prompt", self.prompt_tokens, self.prompt_seconds), ("generated", self.tokens, self.seconds)]
        told = [f"{name}: {count} tokens, {count / seconds:,.1f} tokens/s" for name, count, seconds in parts if seconds]
        return "; ".join(told)


class Batch:
    """Rows that are continued together. A row that has ended leaves, and takes no more time and no more memory."""

    def __init__(self, loaded: LoadedModel, rows: list[Continuation], max_tokens: int, sampling: Sampling, entries: int):
        self.rows, self._sampling, self._entries = rows, sampling, entries
        self._module = loaded.module
        self._cache = KeyValueCache(loaded.module, len(rows), max(len(row.given) for row in rows) + max_tokens)
        self._generators = [torch.Generator().manual_seed(sampling.seed) for _ in rows]

    def advance(self, new: list[list[int]]) -> list[list[int]]:
        """Put each row's new tokens through the model, and choose its next one; returns what the rows that go on go on with."""
        tokens_BT, counts = pad(new, next(self._module.parameters()).device)
        h_BTD = extend(self._module, self._cache, tokens_BT, counts)
        chosen = None
        if h_BTD is not None:
            logits_BV = next_logits(self._module, h_BTD, counts)[:, : self._entries].float().cpu()
            chosen = choose(logits_BV, self._sampling, self._generators)
        chosen = from_last_stage(self._module, chosen, (len(new),), torch.int64).tolist()
        for row, token in zip(self.rows, chosen, strict=True):
            row.add(token)
        live = [number for number, row in enumerate(self.rows) if not row.ended]
        if len(live) < len(new):
            self._cache.select(live)
            self.rows = [self.rows[number] for number in live]
            self._generators = [self._generators[number] for number in live]
        return [[chosen[number]] for number in live]


@torch.inference_mode()
def continue_batch(loaded: LoadedModel, rows: list[Continuation], max_tokens: int, sampling: Sampling, entries: int) -> Speed:
    """Write at most `max_tokens` tokens to each row; ids of `entries` and beyond are never chosen (collective).

    Each row is what it would be alone: it draws from its own stream of `sampling.seed`. Beyond the model's context it goes on with all
    tokens in sight.
    """
    batch = Batch(loaded, rows, max_tokens, sampling, entries)
    speed, start = Speed(prompt_tokens=sum(len(row.given) for row in rows)), time.perf_counter()
    new = batch.advance([row.given for row in rows])
    speed.prompt_seconds = time.perf_counter() - start
    for _ in range(max_tokens - 1):
        if not new:
            break
        speed.tokens += len(new)
        new = batch.advance(new)
    speed.seconds = time.perf_counter() - start - speed.prompt_seconds
    return speed


@dataclass(frozen=True)
class Request:
    """What is asked of `ngpt generate` besides the prompts; at most `batch` of them are continued together on a data rank."""

    max_tokens: int
    sampling: Sampling
    stops: list[str]
    batch: int = 8


def stream(loaded: LoadedModel, prompt: str, request: Request, show: Callable[[str], None]) -> Speed:
    """Continue one prompt, giving pieces of text to `show` as they come (collective)."""
    tokenizer = loaded.tokenizer()
    row = Continuation(tokenizer, prompt, request.stops, show)
    speed = continue_batch(loaded, [row], request.max_tokens, request.sampling, tokenizer.size)
    row.finish()
    return speed


def continue_prompts(loaded: LoadedModel, prompts: list[str], request: Request, write: Callable[[str, str], None]) -> Speed:
    """Continue each prompt, and give it and its text to `write`, in order (collective; readers share the prompts)."""
    tokenizer, axis, speed = loaded.tokenizer(), loaded.grid.readers, Speed()
    together = request.batch * axis.size
    for first in range(0, len(prompts), together):
        part = prompts[first : first + together]
        rows = [Continuation(tokenizer, prompt, request.stops) for prompt in part[axis.share(len(part))]]
        took = continue_batch(loaded, rows, request.max_tokens, request.sampling, tokenizer.size) if rows else Speed()
        texts, took = _joined([row.finish() for row in rows], took, axis)
        for prompt, text in zip(part, texts, strict=True):
            write(prompt, text)
        speed.add(took)
    return speed


def _joined(texts: list[str], speed: Speed, axis: Axis) -> tuple[list[str], Speed]:
    """All readers' texts in order, and their speed together."""
    if axis.size == 1:
        return texts, speed
    found = [None] * axis.size
    dist.all_gather_object(found, (texts, speed), group=axis.group)
    total = Speed()
    for _, other in found:
        total = total.beside(other)
    return [text for part, _ in found for text in part], total


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one a line, or, if its name ends in .jsonl, .ndjson or .jsonlines, an object with a "prompt" a line.

    Raises:
        ConfigError: it can't be read, is empty, or a line is no such object or not UTF-8.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").split(b"\n")
    except OSError as error:
        raise ConfigError(f"--prompts {path}: {error.strerror}; give a text file") from None
    lines = lines[:-1] if lines[-1] == b"" else lines
    if not lines:
        raise ConfigError(f"--prompts {path}: is empty; give one prompt a line")
    prompt_of = _prompt_of if path.suffix in (".jsonl", ".ndjson", ".jsonlines") else bytes.decode
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(prompt_of(line))
        except ValueError as error:
            raise ConfigError(f"--prompts {path}: line {number}: {what_is_wrong(error)}") from None
    return prompts


def _prompt_of(line: bytes) -> str:
    value = read_json(line)
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        raise ValueError('must be an object with a text "prompt", such as {"prompt": "Once"}')
    prompt.encode()
    return prompt


def run(model: Path, prompts: list[str], request: Request, tensor: int, pipeline: int, plain: bool) -> None:
    """The command: `plain`, the one prompt's text as it comes, else a JSON object a line; only rank 0 prints, speed on stderr."""

    def show(text: str, end: str = "") -> None:
        if grid.world.first:
            print(text, end=end, flush=True)

    with joined(tensor, pipeline) as grid:
        loaded = load_model(model, grid=grid)
        if plain:
            speed = stream(loaded, prompts[0], request, show)
            show("", end="\n")
        else:
            speed = continue_prompts(loaded, prompts, request, lambda prompt, text: show(_line(prompt, text), end="\n"))
        if grid.world.first:
            print(speed, file=sys.stderr)


def _line(prompt: str, text: str) -> str:
    return json.dumps({"prompt": prompt, "text": text}, ensure_ascii=not shows_everything())
