"""`ngpt generate`: prompts from options and files, what is printed, and what is refused."""

import json
import sys

import pytest

from megatron_ngpt import cli
from megatron_ngpt.inference.generate import read_prompts
from megatron_ngpt.inference.load import load_model
from tests.inference.test_generate import GREEDY, texts


@pytest.mark.parametrize(("name", "content", "said"), [
    ("gone.txt", None, "No such file"),
    ("empty.txt", "", "is empty"),
    ("a.jsonl", '{"prompt": "a"}\nnot json', "line 2: not JSON: Expecting value at column 1"),
    ("b.jsonl", '{"prompt": 3}', "line 1: must be an object"),
    ("c.txt", b"a\nb\xff", "line 2: invalid UTF-8 at byte 2"),
    ("d.jsonl", '{"prompt": "a", "b": ' + "[" * 3_000 + "]" * 3_000 + "}", "line 1: nested too deeply"),
    ("e.jsonl", '{"prompt": "\\ud800"}', "line 1: half of a surrogate pair"),
    ("f.jsonl", b'{"prompt": "\xff"}', "line 1: invalid UTF-8 at byte 13"),
    ("g.jsonl", "[]", "line 1: must be an object"),
])
def test_files_of_prompts_that_can_not_be_read(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(cli.NgptError, match=r"^--prompts ") as error:
        read_prompts(tmp_path / name)
    assert said in str(error.value)


@pytest.fixture
def ngpt(world, monkeypatch, capsys):
    """Runs `ngpt generate` on the run; returns (status, stdout, stderr)."""

    def command(*options):
        monkeypatch.setattr(sys, "argv", ["ngpt", "generate", str(world.run), "--max_tokens", "9", *options])
        return cli.main(), *capsys.readouterr()

    return command


def test_command_for_one_prompt(world, ngpt):
    status, out, err = ngpt("--prompt", "import os", "--temperature", "0")
    assert status == 0 and out == texts(load_model(world.run), ["import os"], GREEDY, 9)[0] + "\n"
    assert err.startswith("prompt: ") and "; generated: 8 tokens, " in err and err.endswith(" tokens/s\n")
    assert ngpt("--prompt", "x", "--seed", "1")[1] == ngpt("--prompt", "x", "--seed", "1")[1] != ngpt("--prompt", "x", "--seed", "2")[1]


def test_command_for_several_prompts(ngpt, tmp_path):
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfx\n\r\nimport os\n")
    (tmp_path / "lines.jsonl").write_text('{"prompt": "a\\nb", "more": ' + "1" * 5_000 + '}\n')
    options = ("--seed", "7", "--prompt", "y", "--prompts", str(tmp_path / "lines.txt"), "--batch_size", "3")
    records = [json.loads(line) for line in ngpt(*options)[1].splitlines()]
    assert [record["prompt"] for record in records] == ["y", "x", "", "import os"]
    for record in records:
        assert ngpt("--seed", "7", "--prompt", record["prompt"])[1] == record["text"] + "\n"
    [record] = [json.loads(line) for line in ngpt("--prompts", str(tmp_path / "lines.jsonl"))[1].splitlines()]
    assert list(record) == ["prompt", "text"] and record["prompt"] == "a\nb"


@pytest.mark.parametrize(("options", "said"), [
    *((["--prompt", "x", option, value], f"ngpt generate: Invalid value for '{option}'") for option, value in [
        ("--seed", "18446744073709551616"), ("--max_tokens", "99999999999"), ("--batch_size", "1" * 5_000), ("--temperature", "nan"),
        ("--temperature", "inf"), ("--top_p", "nan"), ("--tensor", "18446744073709551616"), ("--pipeline", "1e22"),
    ]),
    (["--prompt", "a\udcff"], "--prompt 'a\\udcff': not UTF-8 at character 2; give text"),
    (["--prompt", "x", "--stop", "\ud800"], "--stop '\\ud800': not UTF-8 at character 1; give text"),
    (["--prompt", "x", "--temperature", "-1"], "ngpt generate: Invalid value for '--temperature'"),
    ([], "--prompt: missing; give --prompt TEXT"),
    (["--prompt", "x", "--tensor", "2"], "--tensor = 2, --pipeline = 1: their product 2 must divide the number of ranks, 1; start"),
])
def test_command_used_wrongly(ngpt, options, said):
    status, out, err = ngpt(*options)
    assert status == 2 and out == "" and err.startswith(said) and err.count("\n") == 1
