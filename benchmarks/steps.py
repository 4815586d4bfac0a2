"""Time of one training step: our nGPT, our GPT and transformers' Llama of the same size, eager and compiled, in one interleaved run.

    python -m benchmarks.steps [--rounds N] [--shapes ...] [--dtypes ...] [--output FILE.json]

A step is forward, loss, backward, AdamW on fp32 masters, renormalisation (nGPT), and the copy back to the weights. In every round each
kind makes one step, eager in the first rounds and compiled in later ones, so that a slow minute of the machine hits all alike; the table
gives medians, and ratios as medians over rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track

from benchmarks.machine import write
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.sphere.renormalise import Renormaliser

SHAPES = {  # hidden, layers, heads, context, sequences, vocabulary
    "512x4": (512, 4, 8, 1024, 2, 16384),
    "1024x2": (1024, 2, 16, 1024, 2, 16384),
    "2048x2": (2048, 2, 32, 1024, 2, 16384),
}
KINDS = ("ngpt", "gpt", "llama")
MODES = ("eager", "compiled")


def our_model(arch: str, shape: tuple, compiled: bool) -> tuple[Decoder, Callable]:
    """The model in fp32 and the function (tokens, targets) → loss."""
    hidden, layers, heads, context, _, vocabulary = shape
    blueprint = Blueprint(
        Model(arch=arch, hidden=hidden, layers=layers, heads=heads, context=context), vocabulary, compile=compiled
    )
    module = Decoder(blueprint)
    initialise(shards_of(module), 0)
    return module, module


def llama(shape: tuple, compiled: bool) -> tuple[torch.nn.Module, Callable]:
    """transformers' Llama of the same size, with the loss it computes itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, context, _, vocabulary = shape
    module = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden,
            vocab_size=vocabulary, max_position_embeddings=context, tie_word_embeddings=False, use_cache=False,
            attn_implementation="sdpa",
        )
    )
    run = torch.compile(module) if compiled else module
    return module, lambda tokens, targets: run(input_ids=tokens, labels=targets, shift_labels=targets).loss


class Variant:
    """One kind of model that can take a step and say how long it took."""

    def __init__(self, kind: str, shape: tuple, compiled: bool, dtype: torch.dtype):
        module, self.loss = llama(shape, compiled) if kind == "llama" else our_model(kind, shape, compiled)
        self.masters = [p.detach().clone().requires_grad_() for p in module.parameters()]
        self.renormaliser = None
        if kind == "ngpt":
            self.renormaliser = self._renormaliser(module)
        module.to(dtype)
        self.weights = list(module.parameters())
        self.base = torch.optim.AdamW(self.masters, lr=1e-4, weight_decay=0, fused=True)

    def _renormaliser(self, module: Decoder) -> Renormaliser:
        for parameter, master in zip(module.parameters(), self.masters, strict=True):
            master.placement = parameter.placement
        holder = torch.nn.ParameterList()
        holder.parameters = lambda: iter(self.masters)
        return Renormaliser(shards_of(holder), RankGrid())

    def step(self, tokens: torch.Tensor, targets: torch.Tensor) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.loss(tokens, targets).backward()
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        self.base.step()
        if self.renormaliser:
            self.renormaliser.renormalise()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start


def measure(shape_name: str, dtype_name: str, mode: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind's steps in a mode, by `kind mode`, round by round."""
    shape, dtype = SHAPES[shape_name], getattr(torch, dtype_name)
    variants = {f"{kind} {mode}": Variant(kind, shape, mode == "compiled", dtype) for kind in KINDS}
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape[5], (shape[4], shape[3] + 1), generator=generator)
    times = {name: [] for name in variants}
    for number in track(range(-2, rounds), description=f"{shape_name} {dtype_name} {mode}", transient=True):
        for name, variant in variants.items():
            seconds = variant.step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            if number >= 0:  # the rounds before compile and warm up
                times[name].append(seconds)
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """The median over rounds of one variant's step over another's."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def row(shape: str, dtype: str, mode: str, times: dict[str, list[float]]) -> str:
    """A line of the table."""
    medians = [f"{1000 * statistics.median(times[f'{kind} {mode}']):.0f}" for kind in KINDS]
    ratios = [ratio(times, f"ngpt {mode}", f"gpt {mode}"), ratio(times, f"gpt {mode}", f"llama {mode}")]
    return f"| {shape} | {dtype} | {mode} | {' | '.join(medians)} | {' | '.join(f'{r:.3f}' for r in ratios)} |"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="counted steps of each variant")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/steps.json"))
    options = parser.parse_args()
    print("| hidden × layers | dtype | mode | nGPT ms | GPT ms | Llama ms | nGPT / GPT | GPT / Llama |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    result = {}
    for shape in options.shapes:
        for dtype in options.dtypes:
            times = result[f"{shape} {dtype}"] = {}
            for mode in MODES:
                times |= measure(shape, dtype, mode, options.rounds)
                print(row(shape, dtype, mode, times), flush=True)
            torch._dynamo.reset()
    write(options.output, {"seconds": result})


if __name__ == "__main__":
    main()
