"""A checkpoint of any layout is resumed by any other as if nothing had happened: the matrix, through the entry point users run."""

import json
from pathlib import Path

import pytest

from megatron_ngpt.config.deepspeed_json import read_deepspeed
from tests.distributed.layouts import Table, metrics
from tests.distributed.ranks import train
from tests.distributed.resumed import BF16, FEW, LAST, LAYOUTS, SAVED_AT, SOURCES, Layout, look_after_loading
from tests.worst import worst

pytestmark = pytest.mark.usefixtures("in_repository")
STEPS = [f"--training.steps={LAST}", f"--checkpoint.every={SAVED_AT}"]
TOLERANCE = {True: 1e-4, False: 1e-5}  # with and without a bf16 run on the way


class Sources:
    """The runs that were saved in one layout each, made when they are first asked for."""

    def __init__(self, directory: Path, table: Table):
        self.directory, self.table = directory, table
        self._checkpoints: dict[str, Path] = {}

    def arguments(self, layout: Layout) -> list[str]:
        options = [option.replace("DATA/", f"{self.table.data}/") for option in layout.options]
        return [str(self.table.recipe), *options, *STEPS]

    def checkpoint(self, layout: Layout) -> Path:
        """The layout's checkpoint in the middle of its run."""
        if layout.name not in self._checkpoints:
            output = self.directory / f"source-{len(self._checkpoints)}"
            train(layout.ranks, self.arguments(layout), output)
            self._checkpoints[layout.name] = output / "checkpoints" / f"step-{SAVED_AT:08}"
        return self._checkpoints[layout.name]

    def curve(self, variant: str) -> list[float]:
        """Losses of the uninterrupted run on one rank."""
        output = self.checkpoint(Layout(f"one rank, {variant}", 1, {"deepspeed": "ds_configs/zero0.json"}, variant)).parents[1]
        return [line["loss"] for line in metrics(output)]


@pytest.fixture(scope="module")
def sources(table, tmp_path_factory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"), table)


def resume_all(sources: Sources, target: Layout, layouts: list[Layout], directory: Path) -> dict[str, float]:
    """The largest relative difference of a loss, by the source that the target resumed; one start for all sources."""
    turns = []
    for number, source in enumerate(layouts):
        arguments = [*sources.arguments(target), f"--checkpoint.resume={sources.checkpoint(source)}"]
        turns.append((arguments, directory / str(number)))
    for _, output in turns:
        output.mkdir()
    train(target.ranks, *turns[0], before=look_after_loading, seconds=280, others=turns[1:])
    wanted, strays = sources.curve(target.variant)[SAVED_AT:], {}
    for source, (_, output) in zip(layouts, turns, strict=True):
        reports = [json.loads((output / f"loaded-{rank}.json").read_text()) for rank in range(target.ranks)]
        assert all(r["step"] == SAVED_AT and r["problems"] == [] for r in reports), (source.name, reports)
        assert worst(r["norm_error"] for r in reports) <= 1e-6, source.name
        if target.variant == "ngpt":
            assert max(r["norm_error"] for r in reports) > 0, "nothing was looked at"
        lines = metrics(output)
        assert [line["step"] for line in lines] == list(range(SAVED_AT + 1, LAST + 1))
        strays[source.name] = worst(abs(line["loss"] - want) / want for line, want in zip(lines, wanted, strict=True))
    return strays


def check(sources: Sources, target: Layout, layouts: list[Layout], directory: Path) -> None:
    chosen = [layout for layout in layouts if layout.variant == target.variant]
    strays = resume_all(sources, target, chosen, directory)
    print(f"{target.name}: " + ", ".join(f"{source} {stray:.0e}" for source, stray in strays.items()))
    assert len(strays) == len(chosen) >= 4
    far = {source: stray for source, stray in strays.items() if not stray <= TOLERANCE[BF16 in (source, target.name)]}
    assert not far


@pytest.mark.parametrize("target", FEW[2:4], ids=lambda layout: layout.name)
def test_two_layouts_resume_a_few(sources, target, tmp_path):
    check(sources, target, FEW, tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("target", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_resumes_a_few(sources, target, tmp_path):
    check(sources, target, SOURCES, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("target", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_resumes_every_other(sources, target, tmp_path):
    check(sources, target, LAYOUTS, tmp_path)


def ways(layout: Layout) -> set[str]:
    """How a layout cuts the model, by its keys: axes of more than one rank, what ZeRO does over the data ranks, and the embedding."""
    keys = layout.keys
    sizes = {axis: keys.get(f"parallel.{axis}", 1) for axis in ("tensor", "pipeline")}
    sizes["data"] = layout.ranks // (sizes["tensor"] * sizes["pipeline"])
    found = {axis for axis, size in sizes.items() if size > 1}
    if sizes["data"] > 1:
        choice = read_deepspeed(keys["deepspeed"])
        found |= {f"ZeRO-{choice.zero_stage}"} | ({"bf16"} if choice.bf16 else set()) | ({"offload"} if choice.offload else set())
    return found | ({"hidden"} if "tensor" in found and keys.get("model.embedding_shard") == "hidden" else set())


def test_the_matrix_is_whole():
    """Eight layouts and more of each architecture, with every way to cut a model in one of them or another, and all axes in one."""
    for variant in ("ngpt", "gpt"):
        chosen = [ways(layout) for layout in LAYOUTS if layout.variant == variant]
        assert len(chosen) >= 8
        assert {"tensor"} in chosen and {"pipeline"} in chosen and any({"tensor", "pipeline", "data"} <= found for found in chosen)
        every = {"tensor", "pipeline", "data", "hidden", *(f"ZeRO-{stage}" for stage in range(4))}
        assert every | ({"bf16", "offload"} if variant == "ngpt" else set()) <= set().union(*chosen)
