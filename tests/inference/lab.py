"""Tasks of lm-eval's shapes, small enough to be worked out by hand, and the model that they are for."""

import json
from types import SimpleNamespace

import torch

from tests.checkpoint.trained import likeliest, make_model, save_run

CONTEXT = 48
QUESTIONS = [
    {"question": "import", "choices": [" os", " sys as _sys", " re", " shutil"], "answer": 1},
    {"question": "def main(argv):\n    return", "choices": [" None", " argv", " True", " False"], "answer": 0},
    {"question": "class HelpFormatter", "choices": ["(object):", "()", " x", "(object):\n    pass"], "answer": 3},
    {"question": "parser.add_argument", "choices": ["(", "(a", "[0]", "=1"], "answer": 2},
]
TEXTS = ["if True:\n    return x", "import os as _os\n" * 12, "x"]
COMMON = "dataset_path: json\ntest_split: test\ndataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}\n"
TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "tiny_written": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{written}}"
target_delimiter: ""
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


def written(module, tokenizer, question, stops=("e", "\n")):
    """Twelve greedy tokens, up to a stop text or the end of the document."""
    tokens, text = tokenizer.encode(question).tolist(), ""
    for _ in range(12):
        with torch.no_grad():
            token = int(likeliest(module(torch.tensor([tokens]))[0, -1, : tokenizer.size]))
        if token == tokenizer.eos_id:
            break
        tokens.append(token)
        text = tokenizer.decode(tokens)[len(question) :]
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


def make_lab(arch, world, directory_of):
    """A run of a model with a longer context, and a directory of tasks and their data."""
    directory = directory_of("harness")
    module = make_model(arch, vocabulary=world.tokenizer.size, context=CONTEXT, seed=8)
    save_run(directory / "run", module, world.tokenizer.path)
    lines = [{**entry, "written": written(module, world.tokenizer, entry["question"])} for entry in QUESTIONS]
    lines[0]["written"] += "x"  # three of four are right
    for name, content in {"questions": lines, "texts": [{"text": text} for text in TEXTS]}.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    for name, task in TASKS.items():
        data = directory / ("texts.jsonl" if name == "tiny_text" else "questions.jsonl")
        head = COMMON.format(data=data, cache=directory / "cache")
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{head}{task}")
    return SimpleNamespace(directory=directory, run=directory / "run", module=module, tokenizer=world.tokenizer)
