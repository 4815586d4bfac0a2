"""What the data benchmarks share: CPU time, memory, interleaved rounds, the machine's name, a table and a JSON file."""

import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".pyi", ".txt", ".rst", ".md", ".h", ".hpp"}


def machine() -> str:
    """Processor and number of cores that this process may use."""
    info = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    known = {key.strip(): value.strip() for key, value in fields.items()}
    family = f", family {known['cpu family']}" if "cpu family" in known else ""
    return f"{known.get('model name', platform.processor())}{family}, {len(os.sched_getaffinity(0))} cores"


def cpu_of(function: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds of this process, wall seconds) of one call."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def cpu_of_command(command: list[str], **environment: str) -> tuple[float, float]:
    """(CPU seconds of a command and all its children, wall seconds). Raises SystemExit if it fails."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: left with {done.returncode}\n{done.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, time.perf_counter() - wall


def interleaved(rounds: int, candidates: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each candidate's figure, `rounds` times, all candidates in each round, so that a busy moment meets all of them."""
    figures = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            figures[name].append(measure())
            print(f"{name}: {figures[name][-1]:,.3f}", file=sys.stderr)
    return figures


def report(title: str, unit: str, figures: dict[str, list[float]], base: str, output: str) -> None:
    """Print medians and ratios to `base` and add them, with the command and the machine, to the JSON lines file `output`."""
    medians = {name: statistics.median(values) for name, values in figures.items()}
    table = Table("", f"median {unit}", f"ratio to {base}", "all", title=f"{title}: {machine()}")
    for name, values in figures.items():
        shown = " ".join(f"{value:,.4g}" for value in values)
        table.add_row(name, f"{medians[name]:,.4g}", f"{medians[name] / medians[base]:.3f}", shown)
    Console(width=140).print(table)
    command = " ".join([Path(sys.executable).name, *sys.argv])
    record = {"title": title, "unit": unit, "machine": machine(), "command": command, "figures": figures, "median": medians}
    with open(output, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def source_texts(megabytes: int) -> list[str]:
    """Real text that any machine with Python has: sources and documentation of the library and of installed packages."""
    texts, size = [], 0
    for root in (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]):
        for path in sorted(Path(root).rglob("*")):
            if path.suffix not in SUFFIXES or not path.is_file():
                continue
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            texts.append(text)
            size += len(text.encode())
            if size >= megabytes * 1_000_000:
                return texts
    raise SystemExit(f"only {size / 1e6:.0f} MB of text found; give a smaller --megabytes")
