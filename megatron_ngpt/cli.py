"""The command `ngpt`. Each sub-command imports its room when it is called, so that `ngpt --help` and mistakes stay fast."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

import megatron_ngpt
from megatron_ngpt.analysis.commands import analyze
from megatron_ngpt.arguments import LARGEST_COUNT, LARGEST_SEED, MODEL, PIPELINE, RECIPE, TENSOR, finite, require_text, usage_line
from megatron_ngpt.checkpoint.commands import checkpoint
from megatron_ngpt.cluster.commands import preflight
from megatron_ngpt.config.place import read_place
from megatron_ngpt.config.reference import help_text
from megatron_ngpt.console import Commands, leave, show_anything, unknown_character
from megatron_ngpt.errors import ConfigError, NgptError, RankError
from megatron_ngpt.inference.commands import evaluate
from megatron_ngpt.monitor.commands import report

app = typer.Typer(
    name="ngpt",
    cls=Commands,
    help="Train, check, evaluate and export nGPT models.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(checkpoint, name="checkpoint")
WAIT_SECONDS = 2.0  # that a rank leaves after rank 0 has told a mistake
TAKES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
KEYS = "\b\n" + help_text().replace("\n\n", "\n\n\b\n")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ngpt {megatron_ngpt.__version__}")
        raise typer.Exit


@app.callback()
def ngpt(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and leave")] = False,
) -> None:
    """Train, check, evaluate and export nGPT models."""


@app.command()
def init(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="a recipe that comes with the package, instead of all keys")] = None,
) -> None:
    """Print a commented recipe to begin with: ngpt init > my.yaml."""
    sys.stdout.reconfigure(encoding="utf-8")  # as recipes are read, whatever this terminal shows
    from megatron_ngpt.config import shipped
    from megatron_ngpt.config.template import template

    if name is None:
        print(template(), end="")
        return
    if name not in shipped.names(shipped.RECIPES):
        raise ConfigError(f"{name}: no recipe that comes with the package; choose from {', '.join(shipped.names(shipped.RECIPES))}")
    print(Path(shipped.located(name, shipped.RECIPES)).read_text("utf-8"), end="")


@app.command(context_settings={**TAKES_OVERRIDES, "help_option_names": []})
def data(context: typer.Context) -> None:
    """Prepare data, as python -m data_tools: train-tokenizer, preprocess, pg19, merge, split, inspect, verify, show-batch."""
    from data_tools.__main__ import app as tools

    try:
        tools(args=context.args or ["--help"], prog_name="ngpt data", standalone_mode=False)
    except OSError as error:
        raise NgptError(f"{error.filename or 'ngpt data'}: {error.strerror or error}") from error


@app.command(context_settings=TAKES_OVERRIDES, epilog=KEYS)
def train(context: typer.Context, recipe: Annotated[str, RECIPE]) -> int:
    """Train the model that a recipe describes: on one rank, or on those of a launcher.

    Several ranks: deepspeed --num_gpus N --module megatron_ngpt train RECIPE.yaml, or torchrun --nproc_per_node N -m megatron_ngpt train
    RECIPE.yaml, or srun ngpt train RECIPE.yaml. It is what launch/pretrain.py does. Keys are set with --section.key=value.
    """
    from megatron_ngpt.training.entry import main

    return main([recipe, *context.args])


@app.command(context_settings=TAKES_OVERRIDES, epilog=KEYS)
def check(
    context: typer.Context,
    recipe: Annotated[str, RECIPE],
    ranks: Annotated[int, typer.Option(max=LARGEST_COUNT, help="number of ranks the run will have")] = 1,
) -> None:
    """Check a recipe, its data and its layout on N ranks, as pretraining would, without starting anything.

    Prints one line: layout, parameters, memory a rank; on stderr what a run that goes on changes. Keys are set with --section.key=value.
    """
    from megatron_ngpt.training.entry import parse
    from megatron_ngpt.training.preflight import in_use, preflight, space_warnings, summary

    arguments = parse([recipe, *context.args])
    ready = preflight(arguments.recipe, arguments.overrides, ranks)
    if ready.recipe.training.eval_tasks:
        from megatron_ngpt.training.evaluation import find_tasks

        find_tasks(ready.recipe)
    print(summary(ready))
    for line in (*ready.notes, *space_warnings(ready), *in_use(ready)):
        print(line, file=sys.stderr)


app.command(context_settings=TAKES_OVERRIDES, epilog=KEYS)(preflight)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a run directory (its newest checkpoint) or a checkpoint")],
    directory: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="a new or empty directory")],
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="of the exported tensors")] = "float32",
) -> None:
    """Write a model as safetensors, with config.json and its tokenizer, as transformers loads them.

    AutoModelForCausalLM reads the gpt baseline as a plain LlamaForCausalLM, and an nGPT with trust_remote_code=True, by code beside it.
    """
    from megatron_ngpt.checkpoint.export import export

    export(model, directory, dtype)


app.command()(evaluate)
app.command()(report)


@app.command()
def generate(
    model: Annotated[Path, MODEL],
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="what the model continues; may be repeated")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="a prompt a line, or {\"prompt\": ...} in FILE.jsonl")] = None,
    max_tokens: Annotated[int, typer.Option("--max_tokens", min=1, max=LARGEST_COUNT, help="most tokens to write")] = 128,
    temperature: Annotated[float, typer.Option(min=0, callback=finite, help="0: always the likeliest token")] = 0.8,
    top_p: Annotated[
        float, typer.Option("--top_p", min=0, max=1, callback=finite, help="choose among the likeliest that reach this")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="fixes what is drawn, for each prompt alone")] = 0,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="end before this text; may be repeated")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, max=LARGEST_COUNT, help="prompts continued together")] = 8,
    tensor: Annotated[int, TENSOR] = 1,
    pipeline: Annotated[int, PIPELINE] = 1,
) -> None:
    """Print a continuation of the prompt, as it is written, up to the end of the document.

    For several prompts, or those of a file, print a JSON object {"prompt", "text"} a line, in order. Tokens a second go to stderr.
    On several ranks (torchrun --nproc_per_node N -m megatron_ngpt generate ...) those beyond tensor · pipeline share the prompts.
    """
    if not prompt and not prompts:
        raise ConfigError("--prompt: missing; give --prompt TEXT, several of them, or --prompts FILE")
    from megatron_ngpt.inference.generate import Request, read_prompts, run
    from megatron_ngpt.inference.sampling import Sampling

    require_text("--prompt", *(prompt or []))
    require_text("--stop", *(stop or []))
    given = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    request = Request(max_tokens, Sampling(temperature, top_p, seed), stop or [], batch_size)
    run(model, given, request, tensor, pipeline, plain=len(given) == 1 and prompts is None)


@app.command()
def harness(
    model: Annotated[Path, MODEL],
    tasks: Annotated[list[str], typer.Option(metavar="NAME", help="tasks or groups of lm-eval, with commas or repeated; `paper`")],
    include_path: Annotated[Path | None, typer.Option("--include_path", metavar="DIR", help="task files of your own")] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, help="first documents of each task only")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, max=LARGEST_COUNT, help="requests put through the model together")] = 8,
    output: Annotated[Path | None, typer.Option(metavar="FILE.json", help="also write the results here")] = None,
    tensor: Annotated[int, TENSOR] = 1,
    pipeline: Annotated[int, PIPELINE] = 1,
) -> None:
    """Run tasks of lm-eval (the extra `eval`) on a model, and print its table of results.

    --tasks paper: those by which nGPT was judged, arc_easy, hellaswag, winogrande, wsc273 and lambada_openai.
    On several ranks (torchrun --nproc_per_node N -m megatron_ngpt harness ...) those beyond tensor · pipeline share the documents.
    """
    from megatron_ngpt.inference.tasks import run

    run(model, tasks, include_path, limit, batch_size, output, tensor, pipeline)


app.command()(analyze)


def run() -> NoReturn:
    """Entry point of the console script."""
    leave(main())


def main() -> int:
    """Run the command line; returns the exit status."""
    show_anything()
    try:
        return app(args=_arguments() or ["--help"], prog_name="ngpt", standalone_mode=False) or 0
    except RankError as error:  # what this rank alone knows
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except NgptError as error:
        return _leave(str(error), error.exit_code)
    except UnicodeEncodeError as error:
        return _leave(unknown_character(error), ConfigError.exit_code)
    except typer.TyperException as error:
        return _leave(usage_line(error, "ngpt"), error.exit_code)


def _arguments() -> list[str]:
    """Of the command line; DeepSpeed's launcher adds --local_rank, which it also says in the environment, where it is read."""
    return [argument for argument in sys.argv[1:] if not argument.startswith(("--local_rank=", "--local-rank="))]


def _leave(message: str, status: int) -> int:
    """Rank 0 alone tells what is wrong. The others leave later: launchers end all ranks when the first one leaves."""
    if _rank() == 0:
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(WAIT_SECONDS)
    return status


def _rank() -> int:
    try:
        return read_place(os.environ).rank
    except ConfigError:  # what every rank tells, as none knows which it is
        return 0
