"""What a rank keeps, makes and holds: saved activations, logits, and ZeRO-3's share of the model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.machine import peak_bytes
from megatron_ngpt.config.deepspeed_json import engine_config, read_deepspeed
from megatron_ngpt.config.recipe import Data, Dataset, Model, Recipe, Training
from megatron_ngpt.model import window
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.device import join_deepspeed
from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.training.engine import Engine, build_module
from tests.distributed.corpus import REPOSITORY
from tests.model.small import SHAPE, VOCABULARY, blueprint, tokens, trained
from tests.on_ranks import on_ranks

BATCH, LENGTH, LAYERS = 2, 16, 3


def model_on_ranks(sequence: bool = False, recompute: str = "none", arch: str = "ngpt", shard: str = "vocab") -> Decoder:
    """A small model over as many tensor ranks as there are, of arbitrary weights."""
    model = Model(arch=arch, embedding_shard=shard, **{**SHAPE, "layers": LAYERS})
    module = Decoder(Blueprint(model, VOCABULARY, make_grid(tensor=dist.get_world_size()), sequence, recompute=recompute))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


# Activations between blocks.


def bytes_kept_between_blocks(sequence: bool) -> tuple[int, int]:
    """Bytes that all blocks together save for backward: of the residual stream, and of all else."""
    module = model_on_ranks(sequence, recompute="full")
    kept = []
    h = module.layers[0](tokens(BATCH, LENGTH))
    whole = window.window_of(module.blueprint, LENGTH, None, module)
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        for block in module.layers[1:-1]:
            h = block(h, whole)
    module.layers[-1](h, tokens(BATCH, LENGTH)).backward()
    stream = {tensor.data_ptr(): tensor.nbytes for tensor in kept if tensor.requires_grad and tensor.shape[-1] == SHAPE["hidden"]}
    rest = {tensor.data_ptr(): tensor.nbytes for tensor in kept if tensor.data_ptr() not in stream}
    return sum(stream.values()), sum(rest.values())


@pytest.mark.parametrize("ranks", [1, 2])
def test_sequence_parallelism_divides_what_is_kept_between_blocks(ranks):
    whole = LAYERS * BATCH * LENGTH * SHAPE["hidden"] * 4  # each block's input, fp32
    table = 2 * LENGTH * SHAPE["hidden"] // SHAPE["heads"] * 4  # of the rotary embedding, one for all blocks
    for sequence, stream in ((False, whole), (True, whole // ranks)):
        for found, rest in on_ranks(ranks, bytes_kept_between_blocks, sequence):
            assert found == stream and rest <= table


def loss_with_documents(recompute: str) -> torch.Tensor:
    module = trained(blueprint(options={"mask_documents": True, "recompute": recompute}, layers=LAYERS))
    return module((tokens(BATCH, LENGTH), torch.arange(LENGTH).expand(BATCH, LENGTH) // 5)).square().mean()


def test_positions_of_documents_are_kept_once_for_all_blocks_and_no_mask_at_all():
    kept, sizes = [], {"mask": BATCH * LENGTH**2, "angles": BATCH * LENGTH * SHAPE["hidden"] // SHAPE["heads"]}
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss_with_documents(recompute="none")
    for what, count in (("mask", 0), ("angles", 2)):  # cosines and sines
        found = {t.untyped_storage().data_ptr() for t in kept if t.untyped_storage().nbytes() == 4 * sizes[what] and not t.requires_grad}
        assert len(found) == count, what


# Logits.


class Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        return out


def as_wide_as_the_vocabulary(sequence: bool, shard: str, arch: str) -> list[tuple[int, ...]]:
    """Shapes of tensors made in a training step whose last dimension is the vocabulary's, with or without padding."""
    module = model_on_ranks(sequence, arch=arch, shard=shard)
    with Shapes() as shapes:
        module(tokens(BATCH, LENGTH), tokens(BATCH, LENGTH, seed=1)).backward()
    assert any(len(shape) > 1 and shape[0] in (BATCH, BATCH * LENGTH) for shape in shapes.seen)
    return sorted(shape for shape in shapes.seen if shape and shape[-1] in (VOCABULARY, VOCABULARY + 1))


def check_steps_make_no_whole_logits() -> None:
    for arch in ("ngpt", "gpt"):
        for sequence in (False, True):
            for shard in ("vocab", "hidden"):
                assert as_wide_as_the_vocabulary(sequence, shard, arch) == [], (arch, sequence, shard)


def test_no_rank_holds_logits_of_the_whole_vocabulary():
    on_ranks(2, check_steps_make_no_whole_logits)


def test_one_rank_alone_does():
    found = on_ranks(1, as_wide_as_the_vocabulary, False, "vocab", "ngpt")[0]
    assert (BATCH * LENGTH, VOCABULARY) in found


# ZeRO-3.

MODEL = Model(layers=32, hidden=128, heads=4, context=16)
ENTRIES = 200


def recipe(json: str) -> Recipe:
    return Recipe(
        model=MODEL, data=Data(tokenizer="none", train=[Dataset(prefix="none")]), deepspeed=str(REPOSITORY / json),
        training=Training(output="none", global_batch=2, micro_batch=1),
    )  # fmt: skip


TIGHT = "tests/distributed/zero3-tight.json"  # buffers of a fixed size are small beside the model


def peaks_of(json: str) -> SimpleNamespace:
    """Peaks in bytes of building the model, and of building its engine and training a step; the model's parameters, and those held here."""
    join_deepspeed(torch.device("cpu"))
    chosen, grid = recipe(json), make_grid()
    config = engine_config(chosen, read_deepspeed(chosen.deepspeed), grid.readers.size)
    rows = SimpleNamespace(tokens=np.arange(17, dtype=np.int32)[None].repeat(2 // grid.readers.size, 0))

    def train_a_step() -> float:
        engine = Engine(chosen, ENTRIES, config, grid, torch.device("cpu"))
        engine.initialise()
        return engine.step(rows, 1e-3, measure=True).read().loss

    model, module = peak_bytes(lambda: build_module(Blueprint(MODEL, ENTRIES, grid), config))
    held = sum(getattr(parameter, "ds_tensor", parameter).numel() for parameter in module.parameters())
    sizes = [int(np.prod(parameter.placement.shape)) for parameter in module.parameters()]
    del module
    training, loss = peak_bytes(train_a_step)
    return SimpleNamespace(model=model, training=training, held=held, count=sum(sizes), largest=max(sizes), loss=loss)


def test_zero_3_keeps_each_ranks_peak_near_its_share():
    """Built under zero.Init a rank never holds the model; in training what remains of it, its gradients and moments is the share too."""
    whole = on_ranks(1, peaks_of, TIGHT)[0]
    share = whole.count * 4 / 2
    for rank in on_ranks(2, peaks_of, TIGHT):
        assert rank.held <= whole.count // 2 + 100  # every parameter is cut; each may be padded by a number or so
        assert rank.model < 1.6 * share  # and copies of parameters that gloo still holds, up to 0.3 of the share by luck; the whole is 2
        assert rank.training < 0.75 * whole.training  # half, and what gloo still holds
        assert rank.loss == pytest.approx(whole.loss, rel=1e-5)


def test_without_zero_3_each_rank_holds_all():
    for rank in on_ranks(2, peaks_of, "ds_configs/zero0.json"):
        assert rank.held == rank.count
        assert rank.model >= 4 * rank.count and rank.training >= 4 * 4 * rank.count  # weights, gradients, two moments
