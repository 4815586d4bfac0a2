"""Every value that is not a time or a size of memory is the same in every layout, through the entry point."""

import math

import pytest

from megatron_ngpt.monitor.metrics import read_metrics
from tests.distributed.layouts import TIGHT, zero
from tests.distributed.ranks import train
from tests.faults.runs import OF_MACHINES

pytestmark = pytest.mark.usefixtures("in_repository")
OPTIONS = {
    "data.train": "[{prefix: DATA/a, weight: 0.7}, {prefix: DATA/b, weight: 0.3}]", "data.document_boundaries": "mask",
    "training.steps": 4, "training.log_every": 2, "model.vocab": 333, "monitor.every": 2,
    "schedule.kind": "constant",  # at a rate of 0 the weights' steps are rounding alone
}  # fmt: skip
ROUNDING = {"max_norm_error": 1e-6, "norm_error": 1e-6, "cosine": 1e-6}  # absolute, by how names begin
TOLERANCE = 1e-5


def lines(corpus, output, ranks: int, keys: dict, seconds: float = 150) -> list[dict[str, float]]:
    """The lines of a run, flattened, without what is of machines."""
    options = [f"--{key}={value}".replace("DATA/", f"{corpus}/") for key, value in (OPTIONS | keys).items()]
    train(ranks, [str(corpus / "recipe.yaml"), *options], output, seconds=seconds)
    return [dict(numbers(line)) for line in read_metrics(output)]


def numbers(value, name=""):
    """(dotted name, number) of all that is in a line."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        yield from numbers(dict(enumerate(value)), name)
    elif not any(part in name for part in OF_MACHINES):
        yield name, value


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> list[dict]:
    """What one rank tells."""
    return lines(corpus, tmp_path_factory.mktemp("alone") / "run", 1, {"training.micro_batch": 6})


@pytest.mark.parametrize("ranks, keys", [
    (8, {"parallel.tensor": 2, "parallel.pipeline": 2, "training.micro_batch": 2, **zero(0)}),
    (3, {"training.micro_batch": 2, "deepspeed": TIGHT}),
    (4, {"parallel.tensor": 2, "parallel.context": 2, "parallel.context_kind": "ring", "parallel.sequence": "true",
         "model.embedding_shard": "hidden", "training.micro_batch": 6, **zero(2)}),
], ids=["tensor 2 × pipeline 2 × data 2, ZeRO-0", "data 3, ZeRO-3, all cut",
        "tensor 2 × context 2, ring, sequence, hidden-sharded, ZeRO-2"])  # fmt: skip
def test_every_value_is_that_of_one_rank(corpus, tmp_path, alone, ranks, keys):
    found = lines(corpus, tmp_path / "run", ranks, keys)
    assert [sorted(line) for line in found] == [sorted(line) for line in alone]
    worst = {}
    for ours, theirs in zip(found, alone, strict=True):
        for name, value in theirs.items():
            if value is None or ours[name] is None:
                assert ours[name] is value, name
                continue
            rounding = next((of for beginning, of in ROUNDING.items() if name.startswith(beginning)), 0.0)
            if not math.isclose(ours[name], value, rel_tol=TOLERANCE, abs_tol=rounding):
                worst[f"{name} of step {theirs['step']}"] = (ours[name], value)
    assert worst == {}


def test_losses_by_source_add_up_to_the_loss(alone):
    """Each weighs as it has rows in the batch of 12."""
    trained = [line for line in alone if "loss" in line]
    assert len(trained) == 2
    for line in trained:
        a, b = line["loss_by_source.a"], line["loss_by_source.b"]
        rows = (line["loss"] - b) / (a - b) * 12
        assert a != b and rows == pytest.approx(round(rows), abs=0.02) and 7 <= rows <= 10
