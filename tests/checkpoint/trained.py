"""Checkpoints that look trained: unit vectors, scales that left their start, and the state that a run writes."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.config.recipe import Data, Dataset, Model, Recipe, Training
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.sphere.renormalise import Renormaliser

SHAPE = {"layers": 2, "hidden": 24, "heads": 4, "kv_heads": 2, "ffn": 40, "context": 16, "rope_base": 500.0}


def make_model(arch: str = "ngpt", vocabulary: int = 33, seed: int = 5, **changes) -> Decoder:
    """A small model on the sphere whose scales and norms differ entry by entry."""
    module = Decoder(Blueprint(Model(arch=arch, **{**SHAPE, **changes}), vocabulary))
    shards = shards_of(module)
    initialise(shards, seed)
    Renormaliser(shards, RankGrid()).renormalise()
    generator = torch.Generator().manual_seed(seed)
    for shard in shards.values():
        if shard.placement.record.kind != "matrix":
            with torch.no_grad():
                shard.master.mul_(1 + 0.5 * torch.randn(shard.count, generator=generator))
    return module


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, int64 [...]; none may be so near a second one that rounding (1e-6 here) could turn them."""
    values, tokens = logits.topk(2, dim=-1)
    assert (values[..., 0] - values[..., 1]).min() > 1e-5, "another processor may choose another token: take another seed"
    return tokens[..., 0]


def fine_tune(model, tokens: torch.Tensor, steps: int, lr: float) -> list[float]:
    """Steps of Adam on tokens [B, T] that a model of `transformers` takes, an nGPT's on its sphere; the loss before each."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=lr), []
    for _ in range(steps):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(model, "normalize_matrices"):
            model.normalize_matrices()
        losses.append(loss.item())
    return losses


def save_run(output: Path, module: Decoder, tokenizer: str | None = None, boundaries: str = "ignore") -> Path:
    """A run directory with one checkpoint of the module; returns the checkpoint."""
    recipe = Recipe(
        model=module.blueprint.model,
        data=Data(tokenizer=tokenizer or "none", train=[Dataset(prefix="none")], document_boundaries=boundaries),
        training=Training(output=str(output)),
    )
    state = {"recipe": recipe.model_dump(mode="json"), "vocabulary": module.blueprint.vocabulary, "tokens": 384, "saved": "then"}
    store = CheckpointStore(output, 1, 0)
    store.save(3, shards_of(module), None, state, {"tokenizer.model": Path(tokenizer).read_bytes()} if tokenizer else {})
    return store.wait().path


def exported(tmp_path: Path, module: Decoder, name: str = "export", **options) -> tuple[Path, dict[str, torch.Tensor], dict]:
    """(directory, tensors, config) of an export of the module."""
    run = tmp_path / f"run of {name}"
    save_run(run, module)
    export(run, tmp_path / name, **options)
    config = json.loads((tmp_path / name / "config.json").read_text())
    tensors = {}
    for file in (tmp_path / name).glob("*.safetensors"):
        tensors |= load_file(file)
    return tmp_path / name, tensors, config
