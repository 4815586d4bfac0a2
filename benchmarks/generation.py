"""Greedy generation with a cache: our models beside transformers on their exports, in one interleaved run.

    python -m benchmarks.generation [--rounds N] [--batches N ...] [--tokens N] [--output FILE.json]

Both have the same weights and the same prompts, and must write the same tokens. In every round each variant continues the same batch, so
that a slow minute of the machine hits all alike. Tokens a second count what is written over the whole time, prompts included; the table
gives medians, and ratios as medians over rounds. fp32, eager.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track

from benchmarks.machine import write
from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.checkpoint.saver import save
from megatron_ngpt.config.recipe import Data, Dataset, Model, Recipe, Training
from megatron_ngpt.inference.generate import continue_batch
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.inference.sampling import Sampling
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.sphere.renormalise import Renormaliser

SHAPE = {"hidden": 512, "layers": 8, "heads": 8, "context": 1024}
VOCABULARY, PROMPT = 16384, 64
Write = Callable[[list[list[int]], int], list[list[int]]]  # continues prompts by so many tokens


class Row:
    """A prompt that never ends, as `continue_batch` takes it."""

    def __init__(self, given: list[int]):
        self.given, self.tokens, self.ended = given, [], False

    def add(self, token: int) -> None:
        """The next token."""
        self.tokens.append(token)


def make_export(directory: Path, arch: str) -> Path:
    """A model as it is at step 0, saved and exported."""
    model = Model(arch=arch, **SHAPE)
    module = Decoder(Blueprint(model, VOCABULARY))
    shards = shards_of(module)
    initialise(shards, 0)
    Renormaliser(shards, RankGrid()).renormalise()
    recipe = Recipe(model=model, data=Data(tokenizer="none", train=[Dataset(prefix="none")]), training=Training(output="none"))
    save(directory / arch, shards, None, {"recipe": recipe.model_dump(mode="json"), "vocabulary": VOCABULARY, "step": 0})
    export(directory / arch, directory / f"{arch}-export")
    return directory / f"{arch}-export"


def ours(directory: Path) -> Write:
    """`ngpt generate`'s way."""
    loaded = load_model(directory)

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        rows = [Row(prompt) for prompt in prompts]
        continue_batch(loaded, rows, count, Sampling(temperature=0.0), VOCABULARY)
        return [row.tokens for row in rows]

    return generate


def theirs(directory: Path) -> Write:
    """`generate` of transformers, with the cache that it chooses."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, dtype=torch.float32)

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        out = module.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return out[:, PROMPT:].tolist()

    return generate


def measure(variants: dict[str, Write], batch: int, count: int, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each variant, round by round."""
    prompts = torch.randint(0, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in track(range(-1, rounds), description=f"batch {batch}", transient=True):
        written = {}
        for name, generate in variants.items():
            start = time.perf_counter()
            written[name] = generate(prompts, count)
            if number >= 0:  # the round before warms up
                rates[name].append(batch * count / (time.perf_counter() - start))
        for arch in ("gpt", "ngpt"):
            if written[arch] != written[f"{arch} transformers"]:
                raise SystemExit(f"{arch}, batch {batch}: the two wrote different tokens")
    return rates


def row(arch: str, batch: int, rates: dict[str, list[float]]) -> str:
    """A line of the table."""
    our, their = rates[arch], rates[f"{arch} transformers"]
    ratio = statistics.median(a / b for a, b in zip(our, their, strict=True))
    return f"| {arch} | {batch} | {statistics.median(our):.1f} | {statistics.median(their):.1f} | {ratio:.2f} |"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="counted continuations of each variant")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="prompts continued together")
    parser.add_argument("--tokens", type=int, default=64, help="tokens written to each prompt")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/generation.json"))
    options = parser.parse_args()
    print("| model | batch | ours tokens/s | transformers tokens/s | ours / transformers |")
    print("| --- | --- | --- | --- | --- |")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        variants = {}
        for arch in ("gpt", "ngpt"):
            exported = make_export(Path(folder), arch)
            variants |= {arch: ours(exported), f"{arch} transformers": theirs(exported)}
        for batch in options.batches:
            rates = results[batch] = measure(variants, batch, options.tokens, options.rounds)
            for arch in ("gpt", "ngpt"):
                print(row(arch, batch, rates), flush=True)
    write(options.output, {"shape": SHAPE, "vocabulary": VOCABULARY, "prompt": PROMPT, "tokens_per_second": results})


if __name__ == "__main__":
    main()
