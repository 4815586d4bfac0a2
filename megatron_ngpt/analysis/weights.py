"""The weights of a model, one at a time, from a checkpoint of any layout or an exported directory, ours or a Llama's."""

from pathlib import Path

import torch

from megatron_ngpt.checkpoint.dcp import StoredTensors
from megatron_ngpt.checkpoint.export import model_of_state
from megatron_ngpt.checkpoint.exported import CONFIG, model_of, read_config
from megatron_ngpt.checkpoint.exported_tensors import ExportedTensors
from megatron_ngpt.checkpoint.initial import check_tensors
from megatron_ngpt.config.parameters import parameter_table
from megatron_ngpt.errors import CheckpointError


class Weights:
    """The parameters of a checkpoint or an exported directory; nothing but the one asked for is in memory.

    Attributes:
        label: what the model is called in tables and figures.
        model: the recipe's section.
        vocabulary: entries of the vocabulary, V.
        records: the table of parameters.
        step: at which the checkpoint was written; None for an export.
        recipe: of the run that wrote the checkpoint, as its state has it; empty for an export.

    Raises ConfigError or CheckpointError where there is no whole model.
    """

    def __init__(self, path: Path, label: str):
        self.label, self.step, self.recipe = label, None, {}
        if (path / CONFIG).is_file():
            self.model = model_of(read_config(path, "MODEL"), "MODEL")
            self.vocabulary, self._source = self.model.vocab, ExportedTensors(path, "MODEL")
        else:
            self._source = StoredTensors(path)
            state = self._source.state
            self.model, self.vocabulary = model_of_state(state), state["vocabulary"]
            self.step, self.recipe = state["step"], state["recipe"]
        self.records = parameter_table(self.model, self.vocabulary)
        if isinstance(self._source, ExportedTensors):
            check_tensors(self._source.shapes, self.records, "MODEL")

    def stored(self, name: str) -> torch.Tensor:
        """A parameter as memory holds it, fp32, of its record's shape. Raises DamagedError, or CheckpointError if it is not finite."""
        record = self.records[name]
        if isinstance(self._source, ExportedTensors):
            values = self._source.read(record, slice(None), slice(None)).float().reshape(record.shape)
            values = values / record.factor if record.factor != 1 else values
        else:
            values = self._source.read(name)
        if not torch.isfinite(values).all():
            raise CheckpointError(f"MODEL: {self.label} holds values of {name} that are not finite; choose another checkpoint")
        return values

    def effective(self, name: str) -> torch.Tensor:
        """A parameter as it acts: matrices [outputs, inputs], scales with their effective values; fp32."""
        record, values = self.records[name], self.stored(name)
        if record.transposed:
            return values.t()
        values = values * record.factor if record.factor != 1 else values
        return values.abs() if record.absolute else values

    def described(self) -> str:
        """In a line: kind, size, and where it stands."""
        model, parameters = self.model, sum(record.size for record in self.records.values())
        heads = f"{model.heads} heads" + (f" over {model.groups} keys" if model.groups != model.heads else "")
        stands = "an export" if self.step is None else f"step {self.step:,}"
        shape = f"{model.layers} layers × {model.hidden}, {heads}, vocabulary {self.vocabulary:,}"
        return f"{model.arch}, {parameters:,} parameters ({shape}), {stands}"
