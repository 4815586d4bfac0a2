"""What an analysis has in memory is a few copies of the largest matrix, however many layers there are."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.machine import peak_bytes
from megatron_ngpt.analysis.analyze import analyse
from megatron_ngpt.analysis.matrices import spectra
from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.checkpoint.exported import CONFIG, TENSORS, make_config
from megatron_ngpt.config.parameters import parameter_table
from megatron_ngpt.config.recipe import Model

LARGEST = 8 * 256 * 1024  # bytes of a feed-forward matrix in float64


def exported(directory: Path, layers: int) -> Weights:
    """Of a GPT in bf16, so that every matrix that is read is also copied into fp32."""
    directory.mkdir()
    model = Model(arch="gpt", layers=layers, hidden=256, heads=4, ffn=1024, context=16, vocab=512)
    records = parameter_table(model, model.vocab)
    (directory / CONFIG).write_text(json.dumps(make_config(model, model.vocab, "bfloat16", {}, "ignore")))
    tensors = {name: torch.randn(record.exported_shape, dtype=torch.bfloat16) for name, record in records.items()}
    save_file(tensors, directory / TENSORS)
    return Weights(directory, "model")


def test_memory_is_that_of_the_largest_matrix(tmp_path):
    small, large = exported(tmp_path / "small", 2), exported(tmp_path / "large", 10)
    of_a_layer, _ = peak_bytes(lambda: list(spectra(large, 9)))
    assert of_a_layer < 3.5 * LARGEST
    of_small, of_large = (peak_bytes(lambda weights=weights: analyse(weights, None, 1))[0] for weights in (small, large))
    assert of_large < of_small + LARGEST / 2  # eight layers more, of 12 such matrices' worth: their singular values
