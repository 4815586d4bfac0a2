"""The layout table: which layouts are compared with which one-rank run, and how far they stray.

    python -m tests.distributed.layouts [--only NAME ...]      prints the table as Markdown
"""

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ngpt.monitor.metrics import read_metrics
from tests.distributed.corpus import RECIPE
from tests.distributed.ranks import train
from tests.worst import worst

REPOSITORY = Path(__file__).resolve().parents[2]
TIGHT = "tests/distributed/zero3-tight.json"  # ZeRO-3 with every parameter really cut and several sub-groups
OVERLAP = "tests/distributed/zero{}-overlap.json"  # gradients travel beside backward, in several buckets; one matrix is larger than any
WIRE = "tests/distributed/zero{}-wire-bf16.json"  # gradients of fp32 weights travel in bf16


@dataclass(frozen=True)
class Layout:
    """A way to cut the run of `variant`: ranks, and the recipe keys that do it."""

    name: str
    ranks: int
    keys: dict = field(default_factory=dict)
    variant: str = "ngpt"

    @property
    def options(self) -> list[str]:
        """Options of launch/pretrain.py."""
        keys = VARIANTS[self.variant] | {"training.micro_batch": self._micro_batch()} | self.keys
        return [f"--{key}={value}" for key, value in keys.items()]

    def _micro_batch(self) -> int:
        """Two accumulation steps, a few more to fill a pipeline: every further one costs time and shows nothing new."""
        pipeline = self.keys.get("parallel.pipeline", 1)
        data = self.ranks // (self.keys.get("parallel.tensor", 1) * self.keys.get("parallel.context", 1) * pipeline)
        return 12 // data // (2 if pipeline == 1 else 3)


# What is trained. Each variant has its own one-rank run.
VARIANTS: dict[str, dict] = {
    "ngpt": {},
    # At nGPT's rate and without warm-up this GPT is chaotic: one rank with other micro-batches strays just as far as a layout does.
    "gpt": {"model.arch": "gpt", "optimizer.weight_decay": 0.1, "optimizer.lr": 0.0003},
    "odd vocabulary": {"model.vocab": 333},
    "grouped queries": {"model.heads": 8, "model.kv_heads": 4},
    "two key/value heads": {"model.heads": 8, "model.kv_heads": 2},
    "thirds": {"model.hidden": 96, "model.heads": 12},  # divides over three tensor ranks
    "slerp": {"model.update": "slerp"},
    "tangent": {"optimizer.tangent": "true"},
    "blend, masked documents": {"data.train": "[{prefix: DATA/a, weight: 0.7}, {prefix: DATA/b, weight: 0.3}]",
                                "data.document_boundaries": "mask"},
    "narrow keys and values": {"model.heads": 20, "model.kv_heads": 1},  # four rows each: over six data ranks some lie on three
}


def zero(stage: int, offload: bool = False) -> dict:
    """The keys of a ZeRO stage in fp32."""
    return {"deepspeed": f"ds_configs/zero{stage}{'-offload' if offload else ''}.json"}


def cut(tensor: int = 1, pipeline: int = 1, sequence: bool = False, hidden: bool = False, stage: int = 0) -> dict:
    """The keys of a layout."""
    keys = {"parallel.tensor": tensor, "parallel.pipeline": pipeline, "parallel.sequence": str(sequence).lower()}
    return keys | {"model.embedding_shard": "hidden" if hidden else "vocab"} | zero(stage)


def spread(kind: str, context: int, tensor: int = 1, **further) -> dict:
    """The keys of a layout whose sequences lie over `context` ranks."""
    return cut(tensor, **further) | {"parallel.context": context, "parallel.context_kind": kind}


LAYOUTS = [
    *(Layout(f"data 2, ZeRO-{z}", 2, zero(z)) for z in range(4)),
    *(Layout(f"data 3, ZeRO-{z}", 3, zero(z)) for z in range(4)),
    Layout("data 3, ZeRO-3, all cut", 3, {"deepspeed": TIGHT}),
    Layout("overlap: data 3, ZeRO-1", 3, {"deepspeed": OVERLAP.format(1)}),
    Layout("overlap: tensor 2 × data 2, ZeRO-2", 4, cut(2) | {"deepspeed": OVERLAP.format(2)}),
    Layout("data 2, ZeRO-2, offload", 2, zero(2, offload=True)),
    Layout("data 2, ZeRO-3, offload", 2, zero(3, offload=True)),
    Layout("tensor 2", 2, cut(2)),
    Layout("tensor 4", 4, cut(4)),
    Layout("tensor 2, sequence", 2, cut(2, sequence=True)),
    Layout("tensor 2, hidden-sharded", 2, cut(2, hidden=True)),
    Layout("tensor 3, hidden-sharded", 3, cut(3, hidden=True), "thirds"),
    Layout("tensor 2, hidden-sharded, sequence", 2, cut(2, sequence=True, hidden=True)),
    Layout("tensor 3, hidden-sharded, sequence", 3, cut(3, sequence=True, hidden=True), "thirds"),
    *(Layout(f"tensor 2 × data 2, ZeRO-{z}", 4, cut(2, stage=z)) for z in (1, 2, 3)),
    Layout("tensor 2 × data 2, hidden-sharded, ZeRO-3, all cut", 4, cut(2, hidden=True) | {"deepspeed": TIGHT}),
    Layout("pipeline 2", 2, cut(pipeline=2)),
    Layout("pipeline 4", 4, cut(pipeline=4)),
    Layout("pipeline 2 × tensor 2", 4, cut(2, 2)),
    Layout("pipeline 2 × tensor 2, sequence", 4, cut(2, 2, sequence=True)),
    Layout("pipeline 2 × data 2, ZeRO-1", 4, cut(pipeline=2, stage=1)),
    Layout("pipeline 2 × tensor 2 × data 2, ZeRO-1", 8, cut(2, 2, stage=1)),
    Layout("odd vocabulary: tensor 2", 2, cut(2), "odd vocabulary"),
    Layout("odd vocabulary: pipeline 2 × tensor 2, ZeRO-1", 4, cut(2, 2, stage=1), "odd vocabulary"),
    Layout("grouped queries: tensor 4", 4, cut(4), "grouped queries"),
    Layout("grouped queries: tensor 2 × data 2, ZeRO-2", 4, cut(2, stage=2), "grouped queries"),
    Layout("micro-batch 1, 12 accumulation steps", 1, {"training.micro_batch": 1}),
    Layout("micro-batch 12, no accumulation", 1, {"training.micro_batch": 12}),
    Layout("recompute", 1, {"training.recompute": "full"}),
    Layout("recompute: tensor 2 × data 2, sequence, ZeRO-3", 4, cut(2, sequence=True, stage=3) | {"training.recompute": "full"}),
    Layout("recompute: pipeline 2 × tensor 2", 4, cut(2, 2) | {"training.recompute": "full"}),
    Layout("selective: tensor 2 × data 2, sequence, ZeRO-3", 4, cut(2, sequence=True, stage=3) | {"training.recompute": "selective"}),
    Layout("feed-forward in chunks: tensor 2 × data 2, ZeRO-3", 4, cut(2, stage=3) | {"training.ffn_chunks": "4"}),
    Layout("recompute, offload: tensor 2", 2, cut(2) | {"training.recompute": "full", "training.offload_activations": "true"}),
    Layout("slerp: tensor 2 × data 2, sequence, ZeRO-2", 4, cut(2, sequence=True, stage=2), "slerp"),
    Layout("tangent: data 3, ZeRO-2", 3, zero(2), "tangent"),
    Layout("tangent: data 3, ZeRO-3, all cut", 3, {"deepspeed": TIGHT}, "tangent"),
    Layout("tangent: tensor 2 × data 2, hidden-sharded, ZeRO-1", 4, cut(2, hidden=True, stage=1), "tangent"),
    Layout("masked blend: data 2, ZeRO-1", 2, zero(1), "blend, masked documents"),
    Layout("masked blend: tensor 2, sequence", 2, cut(2, sequence=True), "blend, masked documents"),
    Layout("masked blend: pipeline 2 × tensor 2", 4, cut(2, 2), "blend, masked documents"),
    *(Layout(f"context {n}, {kind}", n, spread(kind, n)) for kind in ("ulysses", "ring") for n in (2, 4)),
    *(Layout(f"context 2 × data 2, ulysses, ZeRO-{z}", 4, spread("ulysses", 2, stage=z)) for z in (1, 2, 3)),
    Layout("context 3 × data 2, ring, ZeRO-3, all cut", 6, spread("ring", 3) | {"deepspeed": TIGHT}),
    Layout("context 2 × tensor 2, ulysses", 4, spread("ulysses", 2, 2)),
    Layout("context 2 × tensor 2, ring, sequence, hidden-sharded, ZeRO-2", 4, spread("ring", 2, 2, sequence=True, hidden=True, stage=2)),
    Layout("context 2 × tensor 2 × data 2, ulysses, sequence, ZeRO-1", 8, spread("ulysses", 2, 2, sequence=True, stage=1)),
    Layout("context 2 × pipeline 2, ulysses, ZeRO-1", 4, spread("ulysses", 2, pipeline=2, stage=1)),
    Layout("context 2, ring, recompute", 2, spread("ring", 2) | {"training.recompute": "full"}),
    Layout("two key/value heads: context 4, ulysses", 4, spread("ulysses", 4), "two key/value heads"),
    Layout("two key/value heads: context 2 × tensor 2, ulysses, ZeRO-3", 4, spread("ulysses", 2, 2, stage=3), "two key/value heads"),
    Layout("two key/value heads: context 4, ring", 4, spread("ring", 4), "two key/value heads"),
    Layout("masked blend: context 4, ulysses", 4, spread("ulysses", 4), "blend, masked documents"),
    Layout("masked blend: context 4, ring", 4, spread("ring", 4), "blend, masked documents"),
    Layout("masked blend: context 2 × pipeline 2, ring, ZeRO-1", 4, spread("ring", 2, pipeline=2, stage=1), "blend, masked documents"),
    Layout("gpt: context 2 × tensor 2, ulysses, sequence", 4, spread("ulysses", 2, 2, sequence=True), "gpt"),
    Layout("gpt: context 4, ring, ZeRO-2", 4, spread("ring", 4, stage=2), "gpt"),
    Layout("narrow keys and values: data 6, ZeRO-3, all cut (a row on three ranks)", 6, {"deepspeed": TIGHT}, "narrow keys and values"),
    Layout("gpt: data 3, ZeRO-3", 3, zero(3), "gpt"),
    Layout("gpt: tensor 2, sequence", 2, cut(2, sequence=True), "gpt"),
    Layout("gpt: tensor 2 × data 2, hidden-sharded, ZeRO-2", 4, cut(2, hidden=True, stage=2), "gpt"),
    Layout("gpt: pipeline 2 × tensor 2 × data 2, ZeRO-1", 8, cut(2, 2, stage=1), "gpt"),
]


@dataclass(frozen=True)
class Difference:
    """How far a layout's run is from the one-rank run: largest relative differences, and the largest norm error of any step."""

    loss: float
    grad_norm: float
    weights: float
    norm_error: float
    steps: int
    clipped: bool


class Table:
    """Runs layouts and compares each with its variant's one-rank run, which is made once."""

    def __init__(self, directory: Path, recipe: Path, data: Path):
        self.directory, self.recipe, self.data = directory, recipe, data
        self._references: dict[str, Path] = {}

    def run(self, layout: Layout, name: str, seconds: float = 150) -> Path:
        """The run directory of a finished run of the layout."""
        output = self.directory / name
        options = [option.replace("DATA/", f"{self.data}/") for option in layout.options]
        train(layout.ranks, [str(self.recipe), *options], output, seconds=seconds)
        return output

    def reference(self, variant: str) -> Path:
        """The one-rank run of a variant."""
        if variant not in self._references:
            self._references[variant] = self.run(Layout(variant, 1, zero(0), variant), f"reference-{len(self._references)}")
        return self._references[variant]

    def compare(self, layout: Layout) -> Difference:
        """Run the layout and compare."""
        ours = self.run(layout, f"layout-{LAYOUTS.index(layout)}")
        return difference(ours, self.reference(layout.variant))


def metrics(output: Path) -> list[dict]:
    """The training lines of a run's metrics.jsonl."""
    return read_metrics(output, "loss")


def difference(ours: Path, reference: Path) -> Difference:
    """Compare two run directories, step by step and matrix by matrix."""
    a, b = metrics(ours), metrics(reference)
    assert [x["step"] for x in a] == [x["step"] for x in b]
    clip = RECIPE["optimizer"]["clip"]

    def largest(key: str) -> float:
        return worst(abs(x[key] - y[key]) / abs(y[key]) for x, y in zip(a, b, strict=True))

    return Difference(
        loss=largest("loss"),
        grad_norm=largest("grad_norm"),
        weights=weights_difference(ours, reference),
        norm_error=worst(x["max_norm_error"] or 0.0 for x in a),
        steps=len(a),
        clipped=all(x["grad_norm"] > clip for x in b),
    )


def weights_difference(ours: Path, reference: Path) -> float:
    """The largest ‖ΔW‖ / ‖W‖ over the parameters of the two runs' last checkpoints."""
    from megatron_ngpt.checkpoint.catalogue import Catalogue
    from megatron_ngpt.checkpoint.dcp import StoredTensors

    a, b = (StoredTensors(Catalogue(path).newest()) for path in (ours, reference))
    assert sorted(a.names) == sorted(b.names) and a.names

    def error(name: str) -> float:
        want = b.read(name).double()
        return ((a.read(name).double() - want).norm() / want.norm()).item()

    return worst(map(error, b.names))


def main() -> None:
    """Print the table, and the worst of it with what computed it."""
    import torch

    from tests.distributed.corpus import make_corpus

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of layouts")
    chosen = parser.parse_args().only
    found = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_corpus(Path(folder) / "data")
        table = Table(Path(folder), data / "recipe.yaml", data)
        print("| layout | ranks | loss | gradient norm | weights | max abs(‖w‖−1) |\n| --- | --- | --- | --- | --- | --- |")
        for layout in LAYOUTS:
            if not chosen or layout.name in chosen:
                d = table.compare(layout)
                found.append(d)
                norm_error = f"{d.norm_error:.0e}" if d.norm_error else "–"
                print(f"| {layout.name} | {layout.ranks} | {d.loss:.0e} | {d.grad_norm:.0e} | {d.weights:.0e} | {norm_error} |", flush=True)
    kernels, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    print(f"\nThe worst of {len(found)} rows, with {kernels} and {threads} thread(s) a rank: loss {worst(d.loss for d in found):.1e}, "
          f"gradient norm {worst(d.grad_norm for d in found):.1e}, weights {worst(d.weights for d in found):.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
