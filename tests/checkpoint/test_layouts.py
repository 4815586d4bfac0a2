"""A checkpoint of any layout is read bit for bit by any other, weights and moments."""

import json
from unittest.mock import patch

import pytest

from megatron_ngpt.checkpoint import dcp
from megatron_ngpt.checkpoint.dcp import StoredTensors, load
from megatron_ngpt.checkpoint.pieces import AS_GIVEN, KeptPlans, LoadPlanner, SavePlanner, held_tensors
from megatron_ngpt.checkpoint.saver import save
from megatron_ngpt.checkpoint.storage import Reader
from megatron_ngpt.errors import CheckpointError
from tests.checkpoint.layouts import MODEL, Layout, build, differences, fill, run_ranks

HIDDEN = MODEL.model_copy(update={"embedding_shard": "hidden"})
LAYOUTS = {
    "one rank": Layout(),
    "data 2, replicas": Layout(data=2),
    "data 3, partitioned": Layout(data=3, partition=True),
    "tensor 2": Layout(tensor=2),
    "tensor 2, hidden-sharded embedding": Layout(tensor=2, model=HIDDEN),
    "pipeline 2": Layout(pipeline=2),
    "tensor 2, data 2, partitioned, hidden-sharded": Layout(tensor=2, data=2, partition=True, model=HIDDEN),
}
SEED, STEP = 7, 5


def save_worker(rank, layout, path):
    shards, optimizer = build(layout, rank)
    fill(shards, optimizer, SEED, STEP)
    save(path, shards, optimizer, {"step": STEP, "note": "kept"})


def load_worker(rank, layout, paths):
    problems = []
    for saved_by, path in paths.items():
        shards, optimizer = build(layout, rank)
        state = load(path, shards, optimizer)
        assert (state["step"], state["note"]) == (STEP, "kept")
        steps = {float(s["step"]) for s in optimizer.state.values()}
        problems += [f"from {saved_by}: steps {steps}"] if steps - {float(STEP)} else []
        problems += [f"from {saved_by}: {d}" for d in differences(shards, optimizer, SEED, layout, rank)]
    return problems


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    paths = {name: directory / f"checkpoint-{number}" for number, name in enumerate(LAYOUTS)}
    for name, layout in LAYOUTS.items():
        run_ranks(layout.ranks, save_worker, layout, paths[name])
    return paths


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_reads_every_other(saved, name):
    for problems in run_ranks(LAYOUTS[name].ranks, load_worker, LAYOUTS[name], saved):
        assert problems == []


def test_no_process_group_reads_every_layout(saved):
    assert load_worker(0, LAYOUTS["one rank"], saved) == []


def test_replicas_are_written_once_and_padding_never(saved):
    sizes = {name: sum(f.stat().st_size for f in path.glob("*.distcp")) for name, path in saved.items()}
    one = StoredTensors(saved["one rank"])
    numbers = 4 * 3 * sum(one.read(name).numel() for name in one.names)
    for name, path in saved.items():
        stored = StoredTensors(path)
        assert stored.shape("lm_head.weight") == (33, 8)
        chunks = sum(len(m.chunks) for m in stored._metadata.state_dict_metadata.values())
        assert sizes[name] < numbers + 2000 * chunks, name


def test_stored_tensors_are_whole(saved):
    one = StoredTensors(saved["one rank"])
    for path in saved.values():
        other = StoredTensors(path)
        assert sorted(other.names) == sorted(one.names)
        for name in one.names:
            assert other.read(name).equal(one.read(name)), name


def refused_worker(rank, layout, path):
    shards, optimizer = build(layout, rank)
    with pytest.raises(CheckpointError) as error:
        load(path, shards, optimizer)
    return str(error.value)


def test_unknown_parameter_is_refused_on_every_rank(saved):
    shallow = Layout(tensor=2, model=MODEL.model_copy(update={"layers": 1}))
    messages = run_ranks(2, refused_worker, shallow, saved["tensor 2"])
    assert messages[0] == messages[1]
    assert "model.layers.1." in messages[0] and "is not in the model" in messages[0]


def test_other_shape_is_refused_on_every_rank_with_both_values(saved):
    narrow = Layout(pipeline=2, model=MODEL.model_copy(update={"ffn": 10}))
    messages = run_ranks(2, refused_worker, narrow, saved["pipeline 2"])
    assert messages[0] == messages[1]
    assert "[12, 8] in it, [10, 8] in the model" in messages[0]


WIDE = MODEL.model_copy(update={"layers": 1, "hidden": 256, "ffn": 8192})  # matrices of 8 MB: several chunks each


def read_worker(rank, layout, paths):
    """(bytes read, bytes of the share) for each checkpoint."""
    shards, optimizer = build(layout, rank)
    share = 3 * 4 * sum(box.values.numel() for shard in shards.values() for box in shard.boxes(shard.master))
    found = []
    for path in paths:
        with patch.object(dcp, "Reader", wraps=dcp.Reader) as made:
            readers = []
            made.side_effect = lambda path, readers=readers: readers.append(Reader(path)) or readers[0]
            load(path, shards, optimizer)
        found.append((readers[0].bytes_read, share))
    return found


def test_a_rank_reads_its_share_and_no_more_than_chunks_at_its_ends(tmp_path):
    sources = {"one": Layout(model=WIDE), "three": Layout(data=3, partition=True, model=WIDE)}
    for name, layout in sources.items():
        run_ranks(layout.ranks, save_worker, layout, tmp_path / name)
    for keys in ({"tensor": 2}, {"data": 2, "partition": True}, {"tensor": 2, "data": 2, "partition": True}):
        target = Layout(model=WIDE, **keys)
        for of_rank in run_ranks(target.ranks, read_worker, target, [tmp_path / name for name in sources]):
            for read, share in of_rank:
                # Of the weights and both moments, a chunk at either end of what ZeRO gave it; each chunk has a header of a kilobyte.
                assert share <= read <= 1.005 * share + 3 * 2 * 2**20


def test_plans_grow_with_the_parameters_and_not_with_the_bytes(tmp_path):
    """Rank 0 gathers every rank's plan: an item a piece to save, none to load; and a chunk costs its list a number."""
    shards, optimizer = build(Layout(model=WIDE), 0)
    fill(shards, optimizer, SEED, STEP)
    tensors = held_tensors(shards, optimizer)
    planner = SavePlanner(KeptPlans())
    planner.set_up_planner(tensors)
    assert len(planner.create_local_plan().items) == len(tensors)
    save(tmp_path / "saved", shards, optimizer, {"step": STEP})
    stored = json.loads((tmp_path / "saved" / "tensors.json").read_text())
    rows = {piece["tensor"]: piece["rows"] for piece in stored["pieces"]["__0_0.distcp"]}
    assert [piece["tensor"] for piece in stored["pieces"]["__0_0.distcp"]] == list(tensors) and set(stored["shapes"]) == set(tensors)
    assert len(rows["weights/model.layers.0.mlp.up_proj.weight"]) == 8
    reading = LoadPlanner(**AS_GIVEN)
    reading.set_up_planner(tensors, Reader(tmp_path / "saved").read_metadata())
    assert reading.create_local_plan().items == []
