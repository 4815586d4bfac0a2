"""Files that hold texts in other forms than lines of JSON."""

import io
import tarfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
from test_preprocess import json_lines

TEXTS = ["one", "two  lines\n", "漢字"]
LINES = json_lines(TEXTS)


def archive(kind) -> bytes:
    into = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(into, "w") as file:
            file.writestr("a.jsonl", LINES)
    else:
        with tarfile.open(fileobj=into, mode="w") as file:
            entry = tarfile.TarInfo("a.jsonl")
            entry.size = len(LINES)
            file.addfile(entry, io.BytesIO(LINES))
    return into.getvalue()


def arrow(write) -> bytes:
    into = io.BytesIO()
    write(pyarrow.table({"text": TEXTS}), into)
    return into.getvalue()


def array() -> bytes:
    into = io.BytesIO()
    np.save(into, np.arange(3))
    return into.getvalue()
