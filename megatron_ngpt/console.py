"""What a person sees: standard output on terminals and in logs that may not know every character; and how a command ends."""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

import typer
from typer.core import TyperGroup


class Commands(TyperGroup):
    """A group of commands that says in its help what each is for in a whole sentence."""

    def get_command(self, ctx: typer.Context, cmd_name: str):
        """The command, with the first paragraph of its help as the summary; left to itself, typer cuts it at the end of a line."""
        command = super().get_command(ctx, cmd_name)
        if command and command.help:
            command.short_help = command.short_help or " ".join(command.help.split("\n\n")[0].split())
        return command


def show_anything() -> None:
    """From now on a character that standard output's encoding lacks (`→` in Latin-1) is printed as `?`, and is no error.

    Standard error escapes such characters by itself.
    """
    if hasattr(sys.stdout, "reconfigure"):  # not where a test or a notebook has put a stream of its own
        sys.stdout.reconfigure(errors="replace")


def shows_everything() -> bool:
    """Whether standard output has every character. Where it has not, JSON is better escaped than replaced."""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def in_bytes(count: float) -> str:
    """A number of bytes as a person reads it."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def leave(status: int) -> NoReturn:
    """End this process, once what wants to be done at its end is done and all output written.

    Where ranks may have talked, not by the interpreter's own end: gloo's threads let go of the last collectives' tensors whenever they come
    to it, and one that asks for the interpreter then is ended by it, which aborts the process (`terminate called without an active
    exception`).
    """
    if "torch.distributed" in sys.modules:
        atexit._run_exitfuncs()
        with suppress(OSError):  # which the interpreter's own end tells
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def unknown_character(error: UnicodeEncodeError) -> str:
    """A line about a file's name or another text that has no form in the encoding of this environment."""
    return (
        f"{error.object!a}: cannot be written in the encoding {error.encoding} of this environment; "
        "set LC_ALL=C.UTF-8 or PYTHONUTF8=1, or choose other characters"
    )
