"""bf16 is held against the fp32 curve: no layout strays from it farther than 1.5 times what one rank in bf16 does; replicas stay equal."""

import json
from pathlib import Path

import pytest

from tests.distributed.layouts import cut, metrics
from tests.distributed.ranks import train
from tests.worst import worst

pytestmark = pytest.mark.usefixtures("in_repository")
ACCUMULATION = 8
GLOBAL_BATCH = 16


def bf16(stage: int, offload: bool = False) -> dict:
    return {"deepspeed": f"ds_configs/bf16-zero{stage}{'-offload' if offload else ''}.json"}


BF16_LAYOUTS = {
    "data 2, ZeRO-1": (2, bf16(1)),
    "data 2, ZeRO-2": (2, bf16(2)),
    "data 2, ZeRO-3": (2, bf16(3)),
    "data 2, ZeRO-2, offload": (2, bf16(2, offload=True)),
    "data 2, ZeRO-3, offload": (2, bf16(3, offload=True)),
    "tensor 2, sequence": (2, cut(2, sequence=True) | bf16(1)),
    "tensor 2 × data 2, hidden-sharded, ZeRO-3": (4, cut(2, hidden=True) | bf16(3)),
    "pipeline 2 × tensor 2, ZeRO-1": (4, cut(2, 2) | bf16(1)),
}
FEW = list(BF16_LAYOUTS)[-2:]  # for every test run, with all three ways to cut a model and both of DeepSpeed's bf16 optimisers


def losses(ranks: int, keys: dict, corpus: Path, output: Path) -> list[float]:
    data = ranks // (keys.get("parallel.tensor", 1) * keys.get("parallel.pipeline", 1))
    keys = {"training.global_batch": GLOBAL_BATCH, "training.micro_batch": GLOBAL_BATCH // ACCUMULATION // data} | keys
    train(ranks, [str(corpus / "recipe.yaml"), *(f"--{key}={value}" for key, value in keys.items())], output, watch_replicas)
    return [line["loss"] for line in metrics(output)]


def watch_replicas(output: Path) -> None:
    """After training, every rank leaves sums of its replicated masters beside the run."""
    from megatron_ngpt.training.loop import Trainer

    train_as_usual = Trainer.train

    def train_and_tell(trainer) -> None:
        train_as_usual(trainer)
        grid = trainer.grid
        held = {
            f"{name} {shard.start}": shard.master.double().cpu().numpy().tobytes().hex()[:4096]
            for name, shard in trainer.engine.shards.items()
            if shard.count and not shard.placement.sharded
        }
        place = f"{grid.pipeline.rank}-{grid.replicas.rank}"
        (output.parent / f"{output.name}.replicas.{place}.{grid.tensor.rank}.json").write_text(json.dumps(held))

    Trainer.train = train_and_tell


@pytest.mark.parametrize("names", [FEW, pytest.param(list(BF16_LAYOUTS), marks=pytest.mark.heavy)], ids=["few", "every"])
def test_bf16_follows_fp32(corpus, tmp_path, names):
    reference = losses(1, cut(), corpus, tmp_path / "fp32")
    alone = losses(1, bf16(1), corpus, tmp_path / "bf16")

    def strays(found: list[float]) -> float:
        return sum(abs(x - y) for x, y in zip(found, reference, strict=True)) / len(reference)

    allowed = 1.5 * strays(alone)
    assert allowed > 0
    found = {}
    for number, name in enumerate(names):
        (ranks, keys), output = BF16_LAYOUTS[name], tmp_path / f"layout{number}"
        found[name] = strays(losses(ranks, keys, corpus, output))
        assert worst(line["max_norm_error"] for line in metrics(output)) <= 1e-6
        check_replicas(output)
    print("strays over that of one rank:", {name: round(1.5 * stray / allowed, 2) for name, stray in found.items()})
    assert {name: stray for name, stray in found.items() if not stray <= allowed} == {}, (allowed, found)


def check_replicas(output: Path) -> None:
    """Tensor ranks that hold the same parameter hold the same master."""
    for first in output.parent.glob(f"{output.name}.replicas.*.0.json"):
        others = list(first.parent.glob(first.name.replace(".0.json", ".*.json")))
        kept = [json.loads(path.read_text()) for path in others]
        assert all(held == kept[0] for held in kept)
