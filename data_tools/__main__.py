"""`python -m data_tools`: the commands, thin; each imports its module when called."""

import os
import sys
from typing import Annotated

import typer

from data_tools.arguments import ManyInputs, find_files, unescape
from megatron_ngpt.errors import ConfigError, NgptError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="From text to verified, memory-mapped token datasets (PREFIX.bin + PREFIX.idx, Megatron's layout).")

FILES = "JSONL (.jsonl .json .ndjson), .parquet, or plain text (any other name); text and JSONL also as .gz or .zst"
Input = Annotated[list[str], typer.Option("--input", metavar="FILE...", help=f"files and globs: {FILES}", show_default=False)]
TextKey = Annotated[str, typer.Option("--text_key", help="key or column that holds a document's text (JSONL, Parquet)")]
SplitOn = Annotated[str | None, typer.Option("--split_on", help=r"separator between the documents of plain text (\n, \t, \\ "
                                             "are understood); without it a file is a document")]


@app.command("train-tokenizer", cls=ManyInputs)
def train_tokenizer(
    input: Input,
    vocab_size: Annotated[int, typer.Option("--vocab_size", help="entries, 256 single bytes among them", show_default=False)],
    output: Annotated[str, typer.Option("--output", help="P, to write P.model", show_default=False)],
    model: Annotated[str, typer.Option("--model", help="bpe or unigram")] = "bpe",
    text_key: TextKey = "text",
    split_on: SplitOn = None,
    sample_bytes: Annotated[int, typer.Option("--sample_bytes", help="text to train on, spread over the input")] = 50_000_000,
) -> None:
    """Train a SentencePiece tokenizer that keeps newlines and runs of spaces and spells any text (byte fallback)."""
    from data_tools.train_tokenizer import Options
    from data_tools.train_tokenizer import train_tokenizer as train

    separator = None if split_on is None else unescape(split_on)
    path, ratio = train(Options(find_files(input), output, vocab_size, model, text_key, separator, sample_bytes))
    typer.echo(f"{path}: {vocab_size} entries, {ratio:.3f} bytes a token on held-out text")


@app.command("preprocess", cls=ManyInputs)
def preprocess(
    input: Input,
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="a SentencePiece .model file", show_default=False)],
    output: Annotated[str, typer.Option("--output", help="PREFIX of the dataset", show_default=False)],
    workers: Annotated[int, typer.Option("--workers", help="processes that tokenise; 0 = one for each processor")] = 0,
    text_key: TextKey = "text",
    split_on: SplitOn = None,
    shuffle_seed: Annotated[int | None, typer.Option("--shuffle_seed", help="shuffle the documents by this seed")] = None,
    skip_malformed: Annotated[bool, typer.Option("--skip_malformed", help="leave malformed lines out, count them")] = False,
) -> None:
    """Turn texts into a dataset, in the order of the input. Run again after an interruption, it goes on where it was."""
    from data_tools.preprocess import Options
    from data_tools.preprocess import preprocess as run

    separator = None if split_on is None else unescape(split_on)
    if split_on == "":
        raise ConfigError(r"--split_on '': an empty separator separates nothing; give one such as '\n\n'")
    if workers < 0:
        raise ConfigError(f"--workers {workers}: give 1 or more, or 0 for one a processor")
    workers = workers or len(os.sched_getaffinity(0))
    meta = run(Options(find_files(input), tokenizer, output, workers, text_key, separator, shuffle_seed, skip_malformed))
    if not meta:
        typer.echo(f"{output}: complete already, made from this input with these options; nothing to do")
        return
    typer.echo(f"{output}: {meta['documents']:,} documents, {meta['tokens']:,} tokens, {meta['text_bytes']:,} bytes of text; "
               f"left out: {meta['empty_documents']} empty, {meta['malformed_lines']} malformed")


@app.command("show-batch", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def show_batch(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="RECIPE.yaml, and any --section.key=value after it", show_default=False)],
    step: Annotated[int, typer.Option("--step", help="step, from 1 on", show_default=False)],
    output: Annotated[str, typer.Option("--output", help="F.npy: int32 [global_batch, context + 1]", show_default=False)],
) -> None:
    """Write the exact tokens that a training step reads, in global order, whatever the layout."""
    from data_tools.show_batch import save_rows, step_rows

    _, rows = step_rows(recipe, step, context.args)
    save_rows(rows, output)
    typer.echo(f"{output}: int32 {list(rows.tokens.shape)}, step {step}")


def main() -> None:
    """Run a command; a mistake is told in single lines and leaves with 2, a failure with 1."""
    try:
        app()
    except NgptError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
