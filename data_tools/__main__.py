"""`python -m data_tools`: the commands, thin; each imports its module when called."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_tools.arguments import ManyInputs, find_files, unescape
from megatron_ngpt.arguments import LARGEST_COUNT, LARGEST_SEED, finite, parse_lengths, usage_line
from megatron_ngpt.console import Commands, show_anything
from megatron_ngpt.data.indexed import WORDS
from megatron_ngpt.data.tape import find_prefixes
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import ConfigError, DataError, NgptError

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="From text to verified, memory-mapped token datasets (PREFIX.bin + PREFIX.idx, Megatron's layout).")

PROGRAM = "python -m data_tools"
MOST_WORKERS = 1024
LARGEST_SAMPLE = 10**12
FILES = "JSON lines, Parquet or plain text, by name and first bytes; - is standard input; gzip, zstd, bzip2 and xz are unpacked"
Input = Annotated[list[str], typer.Option("--input", metavar="FILE...", help=f"files and globs: {FILES}", show_default=False)]
Format = Annotated[Literal["jsonl", "text", "parquet"] | None, typer.Option("--format", show_default=False,
                                                                           help="what the files are, whatever name and content say")]
TextKey = Annotated[str, typer.Option("--text_key", help="key or column that holds a document's text (JSONL, Parquet)")]
SplitOn = Annotated[str | None, typer.Option("--split_on", help=r"separator between the documents of plain text (\n, \t, \\ "
                                             "are understood); without it a file is a document")]
Output = Annotated[str, typer.Option("--output", metavar="PREFIX", help="dataset to write", show_default=False)]
SkipMalformed = Annotated[bool, typer.Option("--skip_malformed", help="leave malformed lines out, count them")]
Workers = Annotated[int, typer.Option("--workers", min=0, max=MOST_WORKERS, help="processes that tokenise; 0 = one for each processor")]
ShuffleSeed = Annotated[int | None, typer.Option("--shuffle_seed", min=0, max=LARGEST_SEED, help="shuffle the documents by this seed")]


@app.command("train-tokenizer", cls=ManyInputs)
def train_tokenizer(
    input: Input,
    vocab_size: Annotated[int, typer.Option("--vocab_size", max=LARGEST_COUNT, show_default=False,
                                                 help="entries, 256 single bytes among them")],
    output: Annotated[str, typer.Option("--output", help="P, to write P.model", show_default=False)],
    model: Annotated[str, typer.Option("--model", help="bpe or unigram")] = "bpe",
    format: Format = None,
    text_key: TextKey = "text",
    split_on: SplitOn = None,
    skip_malformed: SkipMalformed = False,
    sample_bytes: Annotated[int, typer.Option("--sample_bytes", min=1, max=LARGEST_SAMPLE,
                                                   help="text to train on, spread over the input")] = 50_000_000,
) -> None:
    """Train a SentencePiece tokenizer that keeps newlines and runs of spaces and spells any text (byte fallback).

    But for U+2581, as which SentencePiece writes spaces: it comes back as a space. Malformed lines count where the sample has them.
    """
    from data_tools.train_tokenizer import Options
    from data_tools.train_tokenizer import train_tokenizer as train

    separator = None if split_on is None else unescape(split_on)
    options = Options(find_files(input), output, vocab_size, model, text_key, separator, sample_bytes, format, skip_malformed)
    path, ratio, malformed = train(options)
    left_out = f"; {malformed} malformed left out of the sample" if malformed else ""
    typer.echo(f"{path}: {vocab_size} entries, {ratio:.3f} bytes a token on held-out text{left_out}")


@app.command("preprocess", cls=ManyInputs)
def preprocess(
    input: Input,
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="a SentencePiece .model file", show_default=False)],
    output: Output,
    workers: Workers = 0,
    format: Format = None,
    text_key: TextKey = "text",
    split_on: SplitOn = None,
    shuffle_seed: ShuffleSeed = None,
    skip_malformed: SkipMalformed = False,
) -> None:
    """Turn texts into a dataset, in the order of the input. Run again after an interruption, it goes on where it was."""
    from data_tools.preprocess import Options
    from data_tools.preprocess import preprocess as run

    separator = None if split_on is None else unescape(split_on)
    workers = workers or len(os.sched_getaffinity(0))
    meta = run(Options(find_files(input), tokenizer, output, workers, text_key, separator, shuffle_seed, skip_malformed, format))
    if not meta:
        typer.echo(f"{output}: complete already, made from this input with these options; nothing to do")
        return
    typer.echo(f"{output}: {meta['documents']:,} documents, {meta['tokens']:,} tokens, {meta['text_bytes']:,} bytes of text; "
               f"left out: {meta['empty_documents']} empty, {meta['malformed_lines']} malformed")


@app.command("pg19")
def pg19(
    input: Annotated[Path, typer.Option("--input", metavar="DIR", help="holds train/, validation/, test/ and metadata.csv",
                                        show_default=False)],
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="a SentencePiece .model file", show_default=False)],
    output: Annotated[str, typer.Option("--output", metavar="PREFIX", show_default=False,
                                        help="to write PREFIX-train, PREFIX-validation, PREFIX-test, those that are there")],
    workers: Workers = 0,
) -> None:
    """Turn PG19, or any directory of books of its layout, into a dataset a split, a document a book, with the words of each."""
    from data_tools.pg19 import convert

    for prefix, meta in convert(input, tokenizer, output, workers or len(os.sched_getaffinity(0))).items():
        typer.echo(f"{prefix}: {meta['documents']:,} books, {meta['tokens']:,} tokens, {sum(meta[WORDS]):,} words")


@app.command("merge", cls=ManyInputs)
def merge(
    input: Annotated[list[str], typer.Option("--input", metavar="PREFIX...", help="datasets; globs too", show_default=False)],
    output: Output,
    shuffle_seed: ShuffleSeed = None,
) -> None:
    """Join datasets in the order given, or shuffled by documents."""
    from data_tools.merge import merge as run

    meta = run([prefix for given in input for prefix in find_prefixes(given)], output, shuffle_seed)
    typer.echo(f"{output}: {meta['documents']:,} documents, {meta['tokens']:,} tokens")


@app.command("split")
def split(
    input: Annotated[str, typer.Option("--input", metavar="PREFIX", help="a dataset", show_default=False)],
    output: Annotated[str, typer.Option("--output", metavar="PREFIX", show_default=False,
                                        help="to write PREFIX-train, -valid, -test, or PREFIX-0-1024 and so on")],
    valid: Annotated[float | None, typer.Option("--valid", callback=finite, show_default="0.01",
                                                help="share of the documents for validation")] = None,
    test: Annotated[float | None, typer.Option("--test", callback=finite, show_default="0",
                                               help="share of the documents for testing")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=LARGEST_SEED, show_default="0", help="chooses the documents")] = None,
    lengths: Annotated[str | None, typer.Option("--lengths", metavar="N,N,...", show_default=False,
                                                help="part by length in tokens at these instead, such as 1024,4096,16384")] = None,
) -> None:
    """Part a dataset by document, each part in its order: into train, valid and test at random, or by length."""
    from data_tools.split import length_ranges, split_by_length
    from data_tools.split import split as run

    if lengths is None:
        metas = run(input, output, 0.01 if valid is None else valid, test or 0.0, seed or 0)
    else:
        for option, value in (("--valid", valid), ("--test", test), ("--seed", seed)):
            if value is not None:
                raise ConfigError(f"{option} {value}: --lengths parts by length, not at random; split in two steps, or leave {option} out")
        metas = dict.fromkeys(length_ranges(parse_lengths(lengths))) | split_by_length(input, output, parse_lengths(lengths))
    total = sum(meta["tokens"] for meta in metas.values() if meta)
    for part, meta in metas.items():
        if meta is None:
            typer.echo(f"{output}-{part}: 0 documents, not written")
        else:
            share = meta["tokens"] / max(total, 1)
            typer.echo(f"{output}-{part}: {meta['documents']:,} documents, {meta['tokens']:,} tokens ({share:.1%})")


@app.command("inspect")
def inspect(
    prefix: Annotated[str, typer.Argument(help="a dataset", show_default=False)],
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="to decode samples, count byte-fallback tokens")] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, max=LARGEST_COUNT, help="documents to decode the beginning of")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="chooses those documents")] = 0,
    png: Annotated[str | None, typer.Option("--png", help="also draw the histogram of lengths to this file")] = None,
) -> None:
    """Show what is in a dataset: documents, tokens, their lengths, and with a tokenizer texts and byte-fallback tokens."""
    from data_tools import look

    model = look.stated_tokenizer(prefix, tokenizer)
    contents = look.survey(prefix, model)
    look.print_contents(contents)
    if png:
        look.save_histogram(contents, png)
        typer.echo(f"{png}: histogram of lengths")
    if model:
        look.print_samples(prefix, model, samples, seed)


@app.command("verify")
def verify(
    prefixes: Annotated[list[str], typer.Argument(metavar="PREFIX...", help="datasets; globs too", show_default=False)],
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="that the tokens must fit")] = None,
) -> None:
    """Check that datasets are intact: structure, offsets, tokens, checksums. Reads all of them."""
    from data_tools.verify import verify as run

    model = None if tokenizer is None else Tokenizer(tokenizer)
    problems = []
    for prefix in [found for given in prefixes for found in find_prefixes(given)]:
        found, summary = run(prefix, model)
        problems += found
        if not found:
            typer.echo(summary)
    if problems:
        raise DataError(*problems)


@app.command("show-batch", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def show_batch(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="RECIPE.yaml, and any --section.key=value after it", show_default=False)],
    step: Annotated[int | None, typer.Option("--step", min=1, max=LARGEST_COUNT, help="step, from 1 on", show_default=False)] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, max=LARGEST_COUNT, show_default=False,
                                              help="batch, from 1 on: the step that reads it where none was skipped")] = None,
    output: Annotated[str | None, typer.Option("--output", help="F.npy: int32 [global_batch, context + 1]")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="print each sample's text, its document and offset")] = False,
) -> None:
    """Show the exact tokens that a training step reads, in global order, whatever the layout."""
    from data_tools.show_batch import print_rows, save_rows, step_rows

    if output is None and not decode:
        raise ConfigError("show-batch: nothing to do; give --output F.npy, --decode, or both")
    if (step is None) == (batch is None):
        raise ConfigError("show-batch: give --step N, or --batch N, of which a run that skips samples tells")
    loaded, rows = step_rows(recipe, step, batch, context.args)
    if output is not None:
        save_rows(rows, output)
        typer.echo(f"{output}: int32 {list(rows.tokens.shape)}, {f'step {step}' if batch is None else f'batch {batch}'}")
    if decode:
        print_rows(rows, loaded.data.tokenizer)


def main() -> None:
    """Run a command; a mistake is told in single lines and leaves with 2, a failure with 1."""
    show_anything()
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], prog_name=PROGRAM, standalone_mode=False) or 0)
    except typer.TyperException as error:
        print(usage_line(error, PROGRAM), file=sys.stderr)
        sys.exit(error.exit_code)
    except NgptError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"{error.filename or 'data_tools'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(NgptError.exit_code)


if __name__ == "__main__":
    main()
