"""Passes over memory of a compiled block, forward and backward: our nGPT and our GPT, bf16 weights. No clock decides them.

    python -m benchmarks.passes [--hidden D] [--output FILE.json]

Inductor counts what each of its kernels reads and writes, as it fuses them for a CPU and for a GPU, which need not be there
(`benchmarks/fusion.py`). All but matrix products and attention are counted; products are fast on a GPU, so these are what is left there.
What grows with the batch, a token and a number of the hidden state, is told apart from what does not: passes over weights, once a step.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.fusion import DEVICES, Passes, counting
from benchmarks.machine import write
from benchmarks.saved import VARIANTS
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.window import window_of

CONTEXT = 1024


def passes_of(keys: dict, options: dict, hidden: int, sequences: int, device: torch.device) -> Passes:
    """Of a block of so many sequences."""
    model = Model(layers=1, hidden=hidden, heads=hidden // 64, ffn=4 * hidden, context=CONTEXT, **keys)
    module = Decoder(Blueprint(model, 512, **options)).to(torch.bfloat16)
    window = window_of(module.blueprint, CONTEXT, None, module)
    h_BTD = module.layers[0](torch.zeros((sequences, CONTEXT), dtype=torch.int64)).detach().requires_grad_()
    step, passes = counting(module.layers[1].step, device, module.layers[1].fusion)
    step(h_BTD, window).sum().backward()
    return passes


def main() -> None:
    """Count, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256, help="size of the hidden state; the feed-forward's is four times that")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/passes.json"))
    options = parser.parse_args()
    print("| block | fused for a | bytes × hidden a token | bytes a number of the weights, a step | kernels | graphs |")
    print("| --- | --- | --- | --- | --- | --- |")
    result, weights = {}, 16 * options.hidden**2
    for name, variant in VARIANTS.items():
        for kind, device in DEVICES.items():
            few, many = (passes_of(*variant, options.hidden, sequences, device) for sequences in (2, 4))
            each = (many.bytes - few.bytes) / (2 * CONTEXT)
            rest = few.bytes - 2 * CONTEXT * each
            result[f"{name}, {kind}"] = {"bytes_a_token": each, "bytes_a_step": rest, **asdict(few)}
            print(f"| {name} | {kind} | {each / options.hidden:.1f} | {rest / weights:.2f} | {few.kernels} | {few.graphs} |", flush=True)
    write(options.output, {"passes": result})


if __name__ == "__main__":
    main()
