"""The safetensors files of an exported directory: read by slices, written tensor by tensor."""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from megatron_ngpt.checkpoint.exported import tensor_files
from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.errors import ConfigError

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_DERIVED = ".rotary_emb.inv_freq"  # old Llama checkpoints hold these; they follow from rope_theta


class ExportedTensors:
    """The tensors of an exported directory: shapes without reading them, slices without reading the rest."""

    def __init__(self, directory: Path, key: str):
        self._files = {}
        for path in tensor_files(directory, key):
            try:
                file = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{key}: {path} cannot be read ({error}); valid is a whole safetensors file") from None
            self._files |= {name: file for name in file.keys() if not name.endswith(_DERIVED)}  # noqa: SIM118

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}

    def read(self, record: ParameterRecord, rows: slice, columns: slice) -> torch.Tensor:
        """A rectangle of a parameter as memory holds it, [rows, columns]; a tensor of one dimension is one column."""
        part = self._files[record.name].get_slice(record.name)
        if len(part.get_shape()) == 1:
            return part[rows].unsqueeze(1)
        return part[columns, rows].t() if record.transposed else part[rows, columns]


def write_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, blocks: Callable[[str], Iterable[torch.Tensor]]
) -> None:
    """Write one safetensors file, durably, with no more than a block of it in memory.

    The format is a header that says where each tensor lies, then their bytes (little-endian) end to end, so the shapes are enough
    to begin with. The library `safetensors` itself writes only what it holds whole.

    Args:
        shapes: of every tensor, in the order in which they are written.
        dtype: float32 or bfloat16.
        blocks: for a name, the tensor's rows from the first to the last, in pieces of that dtype.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the bytes after it start aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            for block in blocks(name):
                file.write(block.contiguous().view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())
