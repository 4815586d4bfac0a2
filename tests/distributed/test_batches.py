"""`show-batch` writes the very tokens that a step trains on, whatever the layout."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import VARIANTS, Layout, cut, zero
from tests.distributed.ranks import train

pytestmark = pytest.mark.usefixtures("in_repository")
STEPS = (1, 3)


def record_batches(output: Path) -> None:
    """Every rank writes down what its engine is given, by step, and where it stands."""
    from megatron_ngpt.training.engine import Engine

    micro_batches, count = Engine._micro_batches, [0]

    def recording(engine, rows):
        count[0] += 1
        grid = engine.grid
        place = {"readers": grid.readers.rank, "tensor": grid.tensor.rank, "pipeline": grid.pipeline.rank}
        path = output.parent / f"{output.name}.step{count[0]}.rank{grid.world.rank}.npy"
        path.with_suffix(".json").write_text(json.dumps(place))
        kept = []
        for inputs, targets in micro_batches(engine, rows):
            tokens = inputs[0] if isinstance(inputs, tuple) else inputs
            assert (targets[:, :-1] == tokens[:, 1:]).all()
            kept.append(np.concatenate([tokens.numpy(), targets[:, -1:].numpy()], axis=1))
            np.save(path, np.concatenate(kept))  # now: a pipeline takes what it needs and never comes back
            yield inputs, targets

    Engine._micro_batches = recording


@pytest.mark.parametrize(
    "layout",
    [
        Layout("data 3", 3, zero(2)),
        Layout("pipeline 2 × data 2", 4, cut(pipeline=2, stage=1), "blend, masked documents"),
        Layout("tensor 2 × data 2", 4, cut(2, sequence=True, stage=3), "blend, masked documents"),
    ],
    ids=lambda layout: layout.name,
)
def test_show_batch_is_what_ranks_consume(layout, corpus, tmp_path):
    options = [option.replace("DATA/", f"{corpus}/") for option in layout.options]
    train(layout.ranks, [str(corpus / "recipe.yaml"), *options, "--training.steps=3"], tmp_path / "run", record_batches)
    data_keys = [o.replace("DATA/", f"{corpus}/") for o in (f"--{k}={v}" for k, v in VARIANTS[layout.variant].items())]
    for step in STEPS:
        shown = show_batch(corpus / "recipe.yaml", step, data_keys, tmp_path)
        seen: dict[int, list[np.ndarray]] = {}
        for path in sorted(tmp_path.glob(f"run.step{step}.rank*.npy")):
            place = json.loads(path.with_suffix(".json").read_text())
            seen.setdefault(place["readers"], []).append(np.load(path))
        data_ranks = layout.ranks // (layout.keys.get("parallel.tensor", 1) * layout.keys.get("parallel.pipeline", 1))
        assert sorted(seen) == list(range(data_ranks))
        assert all(np.array_equal(copies[0], copy) for copies in seen.values() for copy in copies)
        assert np.array_equal(np.concatenate([seen[rank][0] for rank in range(data_ranks)]), shown)


def show_batch(recipe: Path, step: int, options: list[str], folder: Path) -> np.ndarray:
    """The array that the command writes."""
    target = folder / f"shown{step}.npy"
    command = [sys.executable, "-m", "data_tools", "show-batch", recipe, "--step", step, "--output", target, *options]
    subprocess.run(list(map(str, command)), check=True, cwd=REPOSITORY, capture_output=True)
    shown = np.load(target)
    assert shown.dtype == np.int32
    return shown
