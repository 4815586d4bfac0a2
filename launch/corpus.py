"""The quickstart's text: the Python standard library as it lies on this machine, its reference manual's topics among it.

    python launch/corpus.py FOLDER        writes FOLDER/train.jsonl and FOLDER/valid.jsonl, a document a line
"""

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

HELD_OUT = 50  # one document of so many is for validation
LEAST_BYTES = 5_000_000


def documents() -> Iterator[str]:
    """The text of every source file of the standard library, and of every help topic."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if "site-packages/" in name or name == "pydoc_data/topics.py":
            continue
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    yield from (text for _, text in sorted(topics.items()))


def held_out(text: str) -> bool:
    """Whether a document is for validation: settled by its text alone, so that a copy of it is never trained on."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELD_OUT == 0


def write(path: Path, texts: list[str]) -> int:
    """Write the texts as JSON lines, whole or not at all; returns their bytes."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    os.replace(new, path)
    return sum(len(text.encode()) for text in texts)


def main(folder: Path) -> int:
    """Write both files; returns the exit status."""
    split: dict[bool, list[str]] = {False: [], True: []}
    for text in documents():
        if text.strip():
            split[held_out(text)].append(text)
    if sum(len(text) for texts in split.values() for text in texts) < LEAST_BYTES:
        library = sysconfig.get_path("stdlib")
        print(f"{library}: too few sources; use a Python that has its standard library as source", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("train", split[False]), ("valid", split[True])):
        size = write(folder / f"{name}.jsonl", texts)
        print(f"{folder / name}.jsonl: {len(texts)} documents, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
