"""Text to tokens, in MB of text a CPU-second: `preprocess`, its floor, and Megatron-LM's own script.

The floor: as many processes do nothing but `encode` on documents in memory. `preprocess` and Megatron-LM's script are timed end
to end as commands, the start of Python and all imports included.

    python benchmarks/data/tokenise.py [--megabytes 100] [--rounds 3] [--model unigram] [--megatron_lm CHECKOUT]
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import sentencepiece
from measure import cpu_of, cpu_of_command, interleaved, report, source_texts


def encode_all(model: str, texts: list[str]) -> float:
    """CPU seconds of encoding texts that are in memory, with a processor that is loaded."""
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    return cpu_of(lambda: [processor.encode(text) for text in texts])[0]


def floor(model: str, texts: list[str], workers: int) -> float:
    """CPU seconds of all processes together."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return sum(pool.starmap(encode_all, [(model, texts[worker::workers]) for worker in range(workers)]))


def our_command(corpus: Path, model: str, workers: int, output: Path) -> float:
    """CPU seconds of `preprocess`."""
    arguments = "--input", corpus, "--tokenizer", model, "--output", output, "--workers", workers
    seconds = cpu_of_command([sys.executable, "-m", "data_tools", "preprocess", *map(str, arguments)])[0]
    for path in output.parent.glob(f"{output.name}.*"):
        path.unlink()
    return seconds


def megatron_command(checkout: str, corpus: Path, model: str, workers: int, output: Path) -> float:
    """CPU seconds of Megatron-LM's tools/preprocess_data.py."""
    arguments = ["--input", corpus, "--output-prefix", output, "--tokenizer-type", "SentencePieceTokenizer",
                 "--tokenizer-model", model, "--workers", workers, "--append-eod"]
    command = [sys.executable, f"{checkout}/tools/preprocess_data.py", *map(str, arguments)]
    extra = os.environ.get("MEGATRON_PYTHONPATH", "")
    return cpu_of_command(command, PYTHONPATH=os.pathsep.join(filter(None, [checkout, extra])))[0]


def train(corpus: Path, model: str, vocab_size: int, output: Path) -> str:
    """A tokenizer trained on 30 MB of the corpus."""
    arguments = "--vocab_size", vocab_size, "--output", output, "--model", model, "--sample_bytes", 30_000_000
    cpu_of_command([sys.executable, "-m", "data_tools", "train-tokenizer", "--input", str(corpus), *map(str, arguments)])
    return f"{output}.model"


def main() -> None:
    """Make the corpus and the tokenizer, measure in interleaved rounds, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", choices=["unigram", "bpe"], default="unigram")
    parser.add_argument("--vocab_size", type=int, default=32000)
    parser.add_argument("--megatron_lm", help="checkout of Megatron-LM (MEGATRON_PYTHONPATH: where its other needs are)")
    parser.add_argument("--output", default="tokenise.jsonl", help="JSON lines file the result is added to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, texts = Path(name), source_texts(options.megabytes)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        corpus = folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        model = train(corpus, options.model, options.vocab_size, folder / "tokenizer")
        workers = options.workers

        def speed(function: Callable[..., float], *arguments) -> Callable[[], float]:
            return lambda: megabytes / function(*arguments)
        candidates = {
            "floor": speed(floor, model, texts, workers),
            "preprocess": speed(our_command, corpus, model, workers, folder / "ours"),
        }
        if options.megatron_lm:
            checkout = os.path.abspath(options.megatron_lm)
            candidates["Megatron-LM's script"] = speed(megatron_command, checkout, corpus, model, workers, folder / "theirs")
        title = f"{megabytes:.0f} MB, {options.model} of {options.vocab_size}, {workers} workers"
        report(title, "MB a CPU-second", interleaved(options.rounds, candidates), "floor", options.output)


if __name__ == "__main__":
    main()
