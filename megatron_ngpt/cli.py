"""The command `ngpt`. Each sub-command imports its room when it is called, so that `ngpt --help` and mistakes stay fast."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_ngpt.config.reference import help_text
from megatron_ngpt.errors import NgptError

app = typer.Typer(
    name="ngpt",
    help="Train, check, evaluate and export nGPT models. Pretraining itself starts with launch/pretrain.py.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
MODEL = typer.Argument(metavar="MODEL", help="a run directory (its newest checkpoint), a checkpoint or an exported directory")
TAKES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=TAKES_OVERRIDES, epilog="\b\n" + help_text().replace("\n\n", "\n\n\b\n"))
def check(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="the recipe")],
    ranks: Annotated[int, typer.Option(help="number of ranks the run will have")] = 1,
) -> None:
    """Check a recipe, its data and its layout on N ranks, as pretraining would, without starting anything.

    Prints one line: layout, parameters, memory a rank. Keys are set with --section.key=value.
    """
    from megatron_ngpt.training.preflight import preflight, summary

    print(summary(preflight(recipe, context.args, ranks)))


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a run directory (its newest checkpoint) or a checkpoint")],
    directory: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="a new or empty directory")],
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="of the exported tensors")] = "float32",
) -> None:
    """Write a model as safetensors with config.json and its tokenizer; the gpt baseline reads as a LlamaForCausalLM."""
    from megatron_ngpt.checkpoint.export import export

    export(model, directory, dtype)


@app.command()
def evaluate(
    model: Annotated[Path, MODEL],
    data: Annotated[str, typer.Option(metavar="PREFIX", help="the dataset PREFIX.bin + PREFIX.idx; may be a glob")],
    context: Annotated[int | None, typer.Option(min=1, help="tokens a window predicts; default: the model's")] = None,
    batches: Annotated[int | None, typer.Option(min=1, help="batches of 8 windows to read; default: the whole dataset")] = None,
) -> None:
    """Print one JSON object: the mean loss of a model on a dataset (nats a token), perplexity, tokens, context."""
    from megatron_ngpt.inference.evaluate import evaluate
    from megatron_ngpt.inference.load import load_model

    print(json.dumps(evaluate(load_model(model, mask_documents=None), data, context, batches)))


@app.command()
def generate(
    model: Annotated[Path, MODEL],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="what the model continues")],
    max_tokens: Annotated[int, typer.Option("--max_tokens", min=1, help="most tokens to write")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token")] = 0.8,
    top_p: Annotated[float, typer.Option("--top_p", min=0, max=1, help="choose among the likeliest that reach this")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="fixes what is drawn")] = 0,
) -> None:
    """Print a continuation of the prompt, up to the end of the document."""
    from megatron_ngpt.inference.generate import continue_text
    from megatron_ngpt.inference.load import load_model

    print(continue_text(load_model(model), prompt, max_tokens, temperature, top_p, seed))


def main() -> int:
    """Entry point of the console script; returns the exit status."""
    try:
        return app(prog_name="ngpt", standalone_mode=False) or 0
    except NgptError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "ngpt"
        print(f"{command}: {' '.join(error.format_message().split())} ({command} --help tells more)", file=sys.stderr)
        return error.exit_code
