"""Attention within documents beside plain causal attention and attention under a mask: time of forward and backward.

    python -m benchmarks.documents [--documents N] [--rounds N] [--output FILE.json]
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track

from benchmarks.machine import write
from megatron_ngpt.model.attention import causal_attention
from megatron_ngpt.parallel.document_attention import document_attention
from megatron_ngpt.parallel.documents import documents_of

HEADS, SIZE, LENGTHS = 4, 64, (4096, 16384)


def masked(q, k, v, scale, mask):
    """Under a mask of [T, T] numbers, as it was done before."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=8, help="in a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/documents.json"))
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print("| tokens | causal ms | within documents | / causal | under a mask | / causal |\n| --- | --- | --- | --- | --- | --- |")
    result = {}
    for length in LENGTHS:
        q, k, v, given = (torch.randn(1, length, HEADS, SIZE).bfloat16().requires_grad_() for _ in range(4))
        numbers = torch.arange(length) * options.documents // length
        documents = documents_of(numbers.unsqueeze(0), q.device)
        mask = torch.zeros(length, length, dtype=q.dtype).masked_fill_(~(numbers[:, None] == numbers).tril_(), -torch.inf)
        works = {
            "causal": lambda q=q, k=k, v=v: causal_attention(q, k, v, SIZE**-0.5),
            "documents": lambda q=q, k=k, v=v, documents=documents: document_attention(q, k, v, SIZE**-0.5, documents),
            "mask": lambda q=q, k=k, v=v, mask=mask: masked(q, k, v, SIZE**-0.5, mask),
        }
        times = {name: [] for name in works}
        for number in track(range(-1, options.rounds), f"{length} tokens", transient=True):
            for name, work in works.items():
                start = time.perf_counter()
                work().backward(given.detach())
                if number >= 0:
                    times[name].append(time.perf_counter() - start)
        result[length] = times
        shares = {name: statistics.median(a / b for a, b in zip(times[name], times["causal"], strict=True)) for name in works}
        medians = {name: f"{1000 * statistics.median(times[name]):.0f}" for name in works}
        cells = " | ".join(f"{medians[name]} | {shares[name]:.2f}" for name in ("documents", "mask"))
        print(f"| {length:,} | {medians['causal']} | {cells} |", flush=True)
    write(options.output, {"documents": options.documents, "heads": HEADS, "head_size": SIZE, "seconds": result})


if __name__ == "__main__":
    main()
