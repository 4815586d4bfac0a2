"""Time of one training step: our nGPT and GPT, other projects' models of the same size, and the floor, in one interleaved run.

    python -m benchmarks.steps [--rounds N] [--shapes ...] [--dtypes ...] [--kinds ...] [--output FILE.json]

A step is forward, loss, backward, AdamW on fp32 masters, renormalisation (nGPT), and the copy back to the weights. In every round each
kind makes one step, eager in the first rounds and compiled in later ones, so that a slow minute of the machine hits all alike; the table
gives medians, and ratios as medians over rounds. Ours compile what `training.compile` compiles; of the others the whole model with its loss
is compiled. The floor is the step's matrix products and attention alone. Peers that are not installed are left out (`benchmarks/peers.py`
says how to have them); at a hidden size of 2,048 six kinds want 24 GiB.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track

from benchmarks.floor import Floor
from benchmarks.machine import write
from benchmarks.masters import Masters
from benchmarks.peers import PEERS, Peer, Size, missing
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.parallel.device import choose_device
from megatron_ngpt.parallel.shards import shards_of

SHAPES = {
    "512x4": Size(512, 4, 8, 1024, 2, 16384),
    "1024x2": Size(1024, 2, 16, 1024, 2, 16384),
    "2048x2": Size(2048, 2, 32, 1024, 2, 16384),
    "512x4 at 4096": Size(512, 4, 8, 4096, 1, 16384),
}
TITLES = {
    "ngpt": "nGPT", "gpt": "GPT", "llama": "transformers' Llama", "titan": "torchtitan's Llama 3", "olmo": "OLMo-core's nGPT",
    "lucid": "nGPT-pytorch",
}  # fmt: skip
MODES = ("eager", "compiled")
COMPARED = (("ngpt", "gpt"), ("gpt", "llama"), ("gpt", "titan"), ("ngpt", "olmo"), ("ngpt", "lucid"))
FLOOR = "floor"


def ours(arch: str, size: Size, compiled: bool) -> Peer:
    """Our model in fp32, with the loss it computes itself."""
    model = Model(arch=arch, hidden=size.hidden, layers=size.layers, heads=size.heads, context=size.context)
    module = Decoder(Blueprint(model, size.vocabulary, compile=compiled))
    initialise(shards_of(module), 0)
    return Peer(module, module, {})


class Variant:
    """One kind of model that can take a step and say how long it took."""

    def __init__(self, kind: str, size: Size, compiled: bool, dtype: torch.dtype):
        built = PEERS[kind](size) if kind in PEERS else ours(kind, size, compiled)
        self.loss = torch.compile(built.loss) if compiled and kind in PEERS else built.loss
        self.masters = Masters(built.module, dtype, lr=1e-4)
        if built.unit_axes:
            self.masters.renormalise = partial(self._by_axes, self.masters.named, built.unit_axes)
        if kind == "ngpt":
            self.masters.return_to_sphere(compiled)

    @staticmethod
    @torch.no_grad()
    def _by_axes(masters: dict[str, torch.Tensor], axes: dict[str, int]) -> None:
        for name, axis in axes.items():
            F.normalize(masters[name], dim=axis, out=masters[name])

    def step(self, tokens: torch.Tensor, targets: torch.Tensor) -> None:
        """One of them."""
        self.loss(tokens, targets).backward()
        self.masters.take_gradients()
        self.masters.update()
        self.masters.give_back()


def seconds_of(step, *arguments) -> float:
    """Of one call."""
    start = time.perf_counter()
    step(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(shape_name: str, dtype_name: str, mode: str, rounds: int, kinds: list[str]) -> dict[str, list[float]]:
    """Seconds of each kind's steps in a mode, by `kind mode`, and of "floor mode", round by round."""
    size, dtype = SHAPES[shape_name], getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, size.vocabulary, (size.sequences, size.context + 1), generator=generator)
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    steps = {f"{kind} {mode}": partial(Variant(kind, size, mode == "compiled", dtype).step, *batch) for kind in kinds}
    steps[f"{FLOOR} {mode}"] = Floor(size, dtype).step
    times = {name: [] for name in steps}
    for number in track(range(-2, rounds), description=f"{shape_name} {dtype_name} {mode}", transient=True):
        for name, step in steps.items():
            seconds = seconds_of(step)
            if number >= 0:  # the rounds before compile and warm up
                times[name].append(seconds)
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """The median over rounds of one variant's step over another's."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def row(shape: str, dtype: str, mode: str, times: dict[str, list[float]], kinds: list[str]) -> str:
    """A line of the table."""
    medians = [f"{1000 * statistics.median(times[f'{kind} {mode}']):.0f}" for kind in (*kinds, FLOOR)]
    ratios = [ratio(times, f"{above} {mode}", f"{below} {mode}") for above, below in compared(kinds)]
    ratios += [ratio(times, f"{FLOOR} {mode}", f"{kinds[0]} {mode}")]
    return f"| {shape} | {dtype} | {mode} | {' | '.join(medians)} | {' | '.join(f'{r:.3f}' for r in ratios)} |"


def compared(kinds: list[str]) -> list[tuple[str, str]]:
    """The pairs whose ratios are told."""
    return [pair for pair in COMPARED if set(pair) <= set(kinds)]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="counted steps of each variant")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="hidden × layers; at a context of 1,024")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--kinds", nargs="+", default=list(TITLES), choices=list(TITLES), help="by default all that are installed")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/steps.json"))
    options = parser.parse_args()
    choose_device()
    kinds = [kind for kind in options.kinds if kind not in missing(options.kinds)]
    if absent := missing(options.kinds):
        print(f"not installed, and left out: {', '.join(TITLES[kind] for kind in absent)} (benchmarks/peers.py says how)")
    heads = [f"{TITLES[kind]} ms" for kind in kinds] + ["floor ms"]
    heads += [f"{TITLES[above]} / {TITLES[below]}" for above, below in compared(kinds)] + [f"floor / {TITLES[kinds[0]]}"]
    print(f"| hidden × layers | dtype | mode | {' | '.join(heads)} |")
    print("| --- " * (3 + len(heads)) + "|")
    result = {}
    for shape in options.shapes:
        for dtype in options.dtypes:
            times = result[f"{shape} {dtype}"] = {}
            for mode in MODES:
                times |= measure(shape, dtype, mode, options.rounds, kinds)
                print(row(shape, dtype, mode, times, kinds), flush=True)
            torch._dynamo.reset()
    write(options.output, {"seconds": result})


if __name__ == "__main__":
    main()
