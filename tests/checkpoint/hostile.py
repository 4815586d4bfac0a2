"""Checkpoints whose maker means harm: pickles that do something when they are loaded, sealed like anything else."""

import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import torch

from megatron_ngpt.checkpoint.seal import TensorFile, seal


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def plain(marker: Path) -> bytes:
    """A pickle, as `pickle.load` takes it."""
    return pickle.dumps(Payload(marker))


def zipped(marker: Path) -> bytes:
    """The same as `torch.save` packs it."""
    content = io.BytesIO()
    torch.save(Payload(marker), content)
    return content.getvalue()


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """Make `content` a small file of the checkpoint, or, for a tensor file, its first chunk; the seal is right again."""
    checksums = json.loads((checkpoint / "checksums.json").read_text())
    if name in checksums:
        first, *rest = checksums[name]
        shift = len(content) - first[1]
        (checkpoint / name).write_bytes(content + (checkpoint / name).read_bytes()[first[1] :])
        chunk = [0, len(content), hashlib.sha256(content).hexdigest()]
        checksums[name] = [chunk, *([at + shift, size, sha256] for at, size, sha256 in rest)]
    else:
        (checkpoint / name).write_bytes(content)
    state = json.loads((checkpoint / "state.json").read_text())
    for key in ("files", "sha256", "format"):
        del state[key]
    (checkpoint / "state.json").unlink()
    files = {file: sum(size for _, size, _ in chunks) for file, chunks in checksums.items()}
    seal(checkpoint, state, [TensorFile(file, size, json.dumps(checksums[file]).encode(), b"", []) for file, size in files.items()])
