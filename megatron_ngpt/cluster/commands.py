"""The command `ngpt preflight`."""

from typing import Annotated

import typer

from megatron_ngpt.arguments import RECIPE


def preflight(
    context: typer.Context,
    recipe: Annotated[str, RECIPE],
    hostfile: Annotated[str, typer.Option("--hostfile", "-H", metavar="FILE", help="DeepSpeed's: a line a host, NAME slots=RANKS")],
    master_addr: Annotated[
        str | None, typer.Option("--master_addr", metavar="ADDRESS", help="where the ranks are to meet; by itself the first host's first")
    ] = None,
    master_port: Annotated[int, typer.Option("--master_port", min=1, max=65535, help="its port")] = 29500,
) -> int:
    """Look on every host of a hostfile, and between them, for whatever would stop this run, before it starts.

    On each host, over ssh, with the environment that DeepSpeed's launcher would give its ranks: can it be reached; are the versions of
    Python, torch, DeepSpeed, NCCL and this package, and this package's code, the same; the clock, to a second; devices for its slots, and
    their free memory; do the checks of `ngpt check` pass for this number of ranks; do tokenizer and data have the same content (files above
    64 MiB: the same size and 64 pieces); can the run directory be written, is it the same on all hosts, and has it room for checkpoint.keep
    + 1 checkpoints; is the port free, and do the others reach the address where ranks meet. If so the hosts meet, one rank each, with nccl
    or gloo: a known tiny model must have one loss everywhere, and bandwidth and latency of each link are shown, slow ones marked.

    One line a host, with all that is wrong there. Exit status: 0 nothing is wrong, 2 something is, 1 this command itself failed.
    """
    from megatron_ngpt.cluster.check import Plan, check
    from megatron_ngpt.cluster.hostfile import read_hostfile
    from megatron_ngpt.config.load import load_recipe
    from megatron_ngpt.training.entry import parse

    hosts = read_hostfile(hostfile)
    arguments = parse([recipe, *context.args])
    load_recipe(arguments.recipe, arguments.overrides)
    plan = Plan(arguments.recipe, arguments.overrides, hosts, master_addr, master_port)
    return check(plan, lambda line: print(line, flush=True))
