"""Head and loss in chunks of tokens beside head and loss at once: time of forward and backward, and peak memory.

    python -m benchmarks.head [--rounds N] [--output FILE.json]

"At once" is the same head with all tokens in one chunk but the gradient in a tensor of its own, as autograd makes it from a compiled
product and torch's cross-entropy; "torch" is `F.linear_cross_entropy` with chunks of its own. All in turn, in every round. Then the
peak of a whole model's forward and backward at the longer length, with its own head and with the one at once.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

from benchmarks.machine import peak_bytes, write
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.head_loss import VocabularyHead
from megatron_ngpt.parallel.products import product

HIDDEN, VOCABULARY = 512, 32_000
TOKENS = (2048, 16384)
MODEL = {"hidden": 256, "layers": 4, "heads": 4, "context": TOKENS[-1]}


def variants(compiled: bool) -> dict[str, Callable]:
    """Functions (x, weight, scale, targets) → mean loss."""
    head = VocabularyHead(Axis(), 0, VOCABULARY, compiled)
    multiply = torch.compile(product) if compiled else product
    entropy = torch.compile(F.cross_entropy) if compiled else F.cross_entropy

    def at_once(x, weight, scale, targets):
        return entropy(multiply(x, weight, scale).flatten(0, 1).float(), targets.flatten())

    def of_torch(x, weight, scale, targets):
        folded = (weight * scale.unsqueeze(1)).to(weight.dtype)
        return F.linear_cross_entropy(x.flatten(0, 1), folded, targets.flatten(), options=LinearCrossEntropyOptions())

    return {"at once": at_once, "in chunks": head.mean_loss, "torch": of_torch}


def once(loss: Callable, inputs: list[torch.Tensor], targets: torch.Tensor) -> float:
    """Seconds of forward and backward."""
    for tensor in inputs:
        tensor.grad = None
    start = time.perf_counter()
    loss(*inputs, targets).backward()
    return time.perf_counter() - start


def peak(loss: Callable, inputs: list[torch.Tensor], targets: torch.Tensor) -> int:
    """The most bytes allocated at once on the way, gradients included."""
    for tensor in inputs:
        tensor.grad = None
    return peak_bytes(lambda: loss(*inputs, targets).backward())[0]


def step_peak(compiled: bool, in_chunks: bool) -> int:
    """The most bytes that a model's forward and backward add to its weights, gradients included, on one sample."""
    module = Decoder(Blueprint(Model(**MODEL), VOCABULARY, compile=compiled)).bfloat16()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=MODEL["hidden"] ** -0.5)
    if not in_chunks:
        module.layers[-1].losses.mean_loss = variants(compiled)["at once"]
    tokens = torch.randint(VOCABULARY, (1, MODEL["context"]))
    module(tokens, tokens).backward()  # compiles
    return peak(lambda *_: module(tokens, tokens), list(module.parameters()), tokens)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/head.json"))
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    generator, result = torch.Generator().manual_seed(0), {}
    print("| tokens | mode | variant | ms | / at once | peak MiB |\n| --- | --- | --- | --- | --- | --- |")
    for tokens in TOKENS:
        x = torch.randn(1, tokens, HIDDEN, generator=generator).bfloat16().requires_grad_()
        weight = (torch.randn(VOCABULARY, HIDDEN, generator=generator) / HIDDEN**0.5).bfloat16().requires_grad_()
        scale = torch.full((VOCABULARY,), 3.0, requires_grad=True)
        targets = torch.randint(VOCABULARY, (1, tokens), generator=generator)
        for compiled in (False, True):
            found = variants(compiled)
            times = {name: [] for name in found}
            for number in track(range(-1, options.rounds), f"{tokens} tokens", transient=True):
                for name, loss in found.items():
                    seconds = once(loss, [x, weight, scale], targets)
                    if number >= 0:
                        times[name].append(seconds)
            mode = "compiled" if compiled else "eager"
            rows = result[f"{tokens} {mode}"] = {}
            for name, loss in found.items():
                rows[name] = {"seconds": times[name], "bytes": peak(loss, [x, weight, scale], targets)}
            for name, row in rows.items():
                share = statistics.median(a / b for a, b in zip(row["seconds"], times["at once"], strict=True))
                seconds = 1000 * statistics.median(row["seconds"])
                print(f"| {tokens:,} | {mode} | {name} | {seconds:.0f} | {share:.2f} | {row['bytes'] / 2**20:,.0f} |", flush=True)
    print("\n| a model's step | in chunks, peak MiB | at once, peak MiB | ratio |\n| --- | --- | --- | --- |")
    steps = {mode: [step_peak(mode == "compiled", in_chunks) for in_chunks in (True, False)] for mode in ("eager", "compiled")}
    for mode, (ours, theirs) in steps.items():
        print(f"| {mode} | {ours / 2**20:,.0f} | {theirs / 2**20:,.0f} | {ours / theirs:.2f} |", flush=True)
    result["step"] = {"model": MODEL, "bytes in chunks, at once": steps}
    write(options.output, {"hidden": HIDDEN, "vocabulary": VOCABULARY, "dtype": "bfloat16", "results": result})


if __name__ == "__main__":
    main()
