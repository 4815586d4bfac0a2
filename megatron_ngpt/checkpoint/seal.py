"""How a checkpoint directory proves that it is whole.

`checksums.json` lists every stored chunk of every tensor file: [offset, bytes, sha256]; `tensors.json` says what lies in them
(`stored.py`). `state.json` is written last, lists every other file with its size, the small ones with their sha256, and carries one of
itself. So a look at the small files tells whether anything is missing or cut, and each chunk is judged by whoever reads it, or all of
them by `verify`. All that is read before a chunk is JSON: a checkpoint is data, whoever made it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_ngpt.checkpoint.files import write_bytes, write_text
from megatron_ngpt.errors import CheckpointError, DamagedError
from megatron_ngpt.foreign import read_json

STATE = "state.json"
CHECKSUMS = "checksums.json"
FORMAT = 6

Chunks = list[tuple[int, int, str]]  # (offset, bytes, sha256) of a file's chunks, end to end


@dataclass(frozen=True)
class TensorFile:
    """A tensor file as the rank that wrote it tells rank 0. Lists are JSON already: rank 0 trains, and a thread of its that took apart and
    wrote what all ranks say would hold the interpreter for seconds; bytes are put end to end in an instant.

    Attributes:
        name: in the checkpoint's directory.
        bytes: how many there are.
        chunks: its `Chunks`, for `checksums.json`.
        pieces: what it holds, for `tensors.json`.
        not_finite: tensors of which it holds values that are not finite.
    """

    name: str
    bytes: int
    chunks: bytes
    pieces: bytes
    not_finite: list[str]


class State(dict):
    """What `state.json` says. Raises DamagedError for a key that it has not: a seal proves who wrote last, not that all is there."""

    def __init__(self, directory: Path, said: dict):
        super().__init__(said)
        self._directory = directory

    def __missing__(self, key: str):
        raise DamagedError(f"{self._directory} is damaged: {STATE} does not say its {key}")


def seal(directory: Path, state: dict, written: list[TensorFile]) -> None:
    """Close a directory whose tensors are written: the chunks' checksums, then the state with the list of files.

    Raises:
        OSError: a file could not be written, or one of `written` is not in the directory with all its bytes.
    """
    write_bytes(directory / CHECKSUMS, joined((file.name, file.chunks) for file in written))
    files, of_tensors = {}, {file.name for file in written}
    for file in sorted(directory.iterdir()):
        files[file.name] = {"bytes": file.stat().st_size} | ({} if file.name in of_tensors else {"sha256": sha256(file)})
    for file in written:
        if files.get(file.name) != {"bytes": file.bytes}:
            raise OSError(f"{file.name} has not the {file.bytes} bytes that its rank wrote; all ranks need one file system")
    closed = {**state, "format": FORMAT, "files": files}
    write_text(directory / STATE, json.dumps({**closed, "sha256": _sha256_of(closed)}, indent=1))


def joined(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A JSON object of values that are JSON already, a line each."""
    return b"{" + b",\n".join(b"%b:%b" % (json.dumps(name).encode(), value) for name, value in members) + b"}"


def read_state(directory: Path) -> State:
    """The state of a complete checkpoint. Reads the small files, and looks at the others' sizes.

    Raises:
        CheckpointError: one of another format, or the disk does not answer.
        DamagedError: no state, or not a readable one with a step; a file is missing, has lost or gained bytes, or has not its checksum.
    """
    try:
        state = read_json((directory / STATE).read_bytes())
        found = state["format"]
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{directory} is not a complete checkpoint: it holds no {STATE}") from None
    except OSError as error:  # perhaps for a moment only, and no reason to give the checkpoint up
        raise CheckpointError(f"{directory / STATE} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{directory} is damaged: {STATE} cannot be read: {error}") from None
    if found != FORMAT:
        raise CheckpointError(f"{directory} has format {found}; this version reads format {FORMAT}")
    if state.pop("sha256", None) != _sha256_of(state):
        raise DamagedError(f"{directory} is damaged: {STATE} has not the checksum that was written with it")
    try:
        for name, entry in state["files"].items():
            _check_file(directory / name, entry)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{directory} is damaged: the files that {STATE} lists cannot be read: {error!r}") from None
    state = State(directory, state)
    if type(state["step"]) is not int or type(state.get("serial", 0)) is not int:
        raise DamagedError(f"{directory} is damaged: {STATE} says no whole number for its step or serial")
    return state


def read_checksums(directory: Path) -> dict[str, Chunks]:
    """The chunks of every tensor file of a checkpoint. Raises DamagedError."""
    try:
        listed = json.loads((directory / CHECKSUMS).read_text("utf-8"))
        found = {_plain_name(name): [(int(at), int(size), str(hash_)) for at, size, hash_ in chunks] for name, chunks in listed.items()}
        for name, chunks in found.items():
            _check_extents(directory / name, chunks)
        return found
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{directory} is damaged: {CHECKSUMS} cannot be read: {error}") from None


def check_chunk(file: Path, offset: int, content: bytes, expected: str) -> None:
    """Raises DamagedError if a chunk's bytes are not the ones that were written."""
    if hashlib.sha256(content).hexdigest() != expected:
        raise DamagedError(
            f"{file.parent} is damaged: {file.name} has not the checksum that was written, in bytes {offset} to {offset + len(content)}"
        )


def verify(
    directory: Path, advance: Callable[[int], None] = lambda _: None, examine: Callable[[str, int, bytes], None] = lambda *_: None
) -> list[str]:
    """Read every byte of a checkpoint; what is wrong with it, one line a file, empty if it is whole.

    `advance` is told the bytes of tensor files as they are read; `examine` is given file, offset and content of every chunk that is as it
    was written, and may raise DamagedError for what it holds.
    """
    try:
        read_state(directory)
    except CheckpointError as error:
        return [str(error)]
    problems = []
    for name, chunks in read_checksums(directory).items():
        try:
            with open(directory / name, "rb") as file:
                for offset, length, expected in chunks:
                    file.seek(offset)
                    content = file.read(length)
                    check_chunk(directory / name, offset, content, expected)
                    examine(name, offset, content)
                    advance(length)
        except DamagedError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{directory} is damaged: {name} cannot be read: {error.strerror}")
    return problems


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain_name(name: str) -> str:
    """A file's name, which leads nowhere else; raises ValueError for a path."""
    if Path(name).name != name:
        raise ValueError(f"{name} is no name of a file")
    return name


def _check_extents(file: Path, chunks: Chunks) -> None:
    """Raises ValueError for chunks that do not lie in the file, end to end."""
    end = 0
    for at, size, _ in chunks:
        if at != end or size <= 0:
            raise ValueError(f"the chunk of {size} bytes at {at} of {file.name} does not follow the one that ends at {end}")
        end += size
    if file.is_file() and file.stat().st_size != end:
        raise ValueError(f"the chunks of {file.name} end at {end}, and it has {file.stat().st_size} bytes")


def _check_file(file: Path, entry: dict) -> None:
    if not file.is_file():
        raise DamagedError(f"{file.parent} is not complete: {file.name} is missing")
    if file.stat().st_size != entry["bytes"]:
        raise DamagedError(f"{file.parent} is damaged: {file.name} has {file.stat().st_size} bytes, not {entry['bytes']}")
    if "sha256" in entry and sha256(file) != entry["sha256"]:
        raise DamagedError(f"{file.parent} is damaged: {file.name} has not the checksum that was written")


def _sha256_of(state: dict) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
