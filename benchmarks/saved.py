"""Bytes that a block keeps for backward, a token and a number of the hidden state: our nGPT and our GPT, eager and compiled, bf16 weights.

    python -m benchmarks.saved [--hidden D] [--output FILE.json]

What autograd saves, each storage once, without weights and the rotation's table: no device decides it. Of a compiled block it is what the
compiler chose to keep.
"""

import argparse
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.machine import write
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.window import window_of

VARIANTS = {  # of the model, of the blueprint
    "lerp": ({"arch": "ngpt"}, {}),
    "lerp, bf16 between blocks": ({"arch": "ngpt", "residual_dtype": "bfloat16"}, {}),
    "lerp, selective": ({"arch": "ngpt"}, {"recompute": "selective"}),
    "slerp": ({"arch": "ngpt", "update": "slerp"}, {}),
    "gpt": ({"arch": "gpt"}, {}),
    "gpt, bf16 between blocks": ({"arch": "gpt", "residual_dtype": "bfloat16"}, {}),
    "gpt, selective": ({"arch": "gpt"}, {"recompute": "selective"}),
}
TOKENS = (2, 1024)


def saved_bytes(keys: dict, options: dict, hidden: int, compiled: bool) -> int:
    """Of the second block of two."""
    torch._dynamo.reset()
    model = Model(layers=2, hidden=hidden, heads=hidden // 64, ffn=4 * hidden, context=TOKENS[1], **keys)
    module = Decoder(Blueprint(model, 512, compile=compiled, **options)).to(torch.bfloat16)
    window = window_of(module.blueprint, TOKENS[1], None, module)
    shared = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), window.cos, window.sin)}
    h_BTD = module.layers[1](module.layers[0](torch.zeros(TOKENS, dtype=torch.int64)), window)
    kept: dict[int, torch.Tensor] = {}
    with saved_tensors_hooks(lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor):
        module.layers[2](h_BTD, window)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in shared)


def main() -> None:
    """Count, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256, help="size of the hidden state; the feed-forward's is four times that")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/saved.json"))
    options = parser.parse_args()
    numbers = TOKENS[0] * TOKENS[1] * options.hidden
    print("| block | eager | compiled |\n| --- | --- | --- |")
    result = {}
    for name, variant in VARIANTS.items():
        counted = {mode: saved_bytes(*variant, options.hidden, mode == "compiled") for mode in ("eager", "compiled")}
        result[name] = counted
        print(f"| {name} | {' | '.join(f'{count / numbers:.1f}' for count in counted.values())} |", flush=True)
    write(options.output, {"bytes": result})


if __name__ == "__main__":
    main()
