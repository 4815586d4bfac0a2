"""What DeepSpeed's launcher reads before it starts ranks elsewhere: the hostfile, and the environment that it passes on. Its own rules."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_ngpt.errors import ConfigError

ENTRY = re.compile(r"(\S+)\s+slots=(\d+)")
PASSED_ON = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")  # beginnings of names; NCCL on GPUs


@dataclass(frozen=True)
class Host:
    """A line of the hostfile: a name that ssh knows, and the number of ranks there."""

    name: str
    slots: int


def read_hostfile(path: str) -> list[Host]:
    """The hosts in their order. Raises ConfigError, a line for each mistake, where the launcher would stop or do something else."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text in UTF-8"
        raise ConfigError(f"--hostfile {path}: {reason}; give a file with a line a host: NAME slots=RANKS") from None
    hosts, problems, seen = [], [], {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        where = f"--hostfile {path}, line {number}: {line!r}"
        if not (match := ENTRY.match(line)):
            problems.append(f"{where} is no host; write NAME slots=RANKS")
        elif match[1] in seen:
            problems.append(f"{where}: {match[1]} is in line {seen[match[1]]} already; give each host one line, with all its slots")
        elif not int(match[2]):
            problems.append(f"{where} has no slots; remove the line, or give it one slot a rank")
        else:
            seen[match[1]] = number
            hosts.append(Host(match[1], int(match[2])))
    if not hosts and not problems:
        problems.append(f"--hostfile {path}: names no host; write a line a host: NAME slots=RANKS")
    if problems:
        raise ConfigError(*problems)
    return hosts


def passed_on(environment: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The variables that remote ranks get beside those of an ssh login: by name, and from `.deepspeed_env` at home and in `directory`.

    Raises ConfigError for a line of that file that ends the launcher.
    """
    found = {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}
    found["PYTHONPATH"] = ":".join(filter(None, [str(directory), environment.get("PYTHONPATH")]))
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    for folder in (Path.home(), directory):
        if not (folder / name).is_file():
            continue
        for number, line in enumerate((folder / name).read_text("utf-8").splitlines(), 1):
            key, equals, value = line.partition("=")
            if not equals:
                raise ConfigError(f"{os.path.join(folder, name)}, line {number}: {line!r} ends DeepSpeed's launcher; only NAME=value lines")
            found[key.strip()] = value.strip()
    return found
