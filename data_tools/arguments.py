"""What the commands' arguments have in common: several values after one option, globs, errors as single lines."""

import glob
import os

from typer.core import TyperCommand

from megatron_ngpt.arguments import require_text
from megatron_ngpt.errors import ConfigError


class ManyInputs(TyperCommand):
    """A command whose `--input` takes one or more values, and may be given again: `--input a b --input c`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, which is the form that the parser knows."""
        return super().parse_args(ctx, repeat_option(args, "--input"))


def repeat_option(arguments: list[str], option: str) -> list[str]:
    """`--input a b` as `--input a --input b`: values reach up to the next argument that begins with a dash and is more."""
    repeated, inside = [], False
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            inside = argument == option
            if not inside:
                repeated.append(argument)
        else:
            repeated += [option, argument] if inside else [argument]
    return repeated


def find_files(patterns: list[str]) -> list[str]:
    """The files that paths and globs name, in the order given, a glob's sorted; `-` is standard input.

    Raises ConfigError for each that names none, and for a file that is named twice, by whatever spelling or link.
    """
    files, problems = [], []
    for pattern in patterns:
        pattern = "/dev/stdin" if pattern == "-" else pattern
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        plain = [path for path in found if not os.path.isdir(path)]
        if not plain:
            problems.append(f"--input {pattern}: {'is a directory' if found else 'no such file'}; give files or a quoted glob "
                            "such as 'texts/*.jsonl'")
        files += plain
    problems += named_twice(files)
    if problems:
        raise ConfigError(*problems)
    return files


def named_twice(files: list[str]) -> list[str]:
    """A line for each path of a file that another path before it leads to."""
    first, problems = {}, []
    for path in files:
        try:
            about = os.stat(path)
        except OSError:         # is told by whoever opens it
            continue
        known = (about.st_dev, about.st_ino) in first
        other = first.setdefault((about.st_dev, about.st_ino), path)
        if known:
            also = "named twice" if other == path else f"the same file as {other}"
            problems.append(f"--input {path}: {also}; its documents would be there twice")
    return problems


def unescape(separator: str) -> str:
    r"""`--split_on` as typed, with \n, \t and \\ standing for newline, tab and backslash. Raises ConfigError if it can't separate."""
    if not separator:
        raise ConfigError(r"--split_on '': an empty separator separates nothing; give one such as '\n\n'")
    require_text("--split_on", separator)
    return separator.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t").replace("\0", "\\")
