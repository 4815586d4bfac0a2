"""`preprocess` killed at any moment goes on and ends with the same bytes; unfinished work of other arguments is refused."""

import errno
import gzip
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import chunks, preprocess
from data_tools.preprocess import Options
from megatron_ngpt.data.writer import IndexedWriter

TEXTS = [f"line {i} " + "word " * (i % 17) for i in range(120)]


@pytest.fixture(scope="module")
def small_shards():
    """Chunks of 300 bytes and a record after each, so that small files have many shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks.read_chunks, "__defaults__", ((0, 0), 300))
        patch.setattr("data_tools.encode.group_chunks.__defaults__", (300,))
        patch.setattr(chunks, "READ_BYTES", 200)
        patch.setattr(preprocess, "SHARD_BYTES", 0)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (folder / "a.jsonl").write_text("".join(lines[:50]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[50:100]).encode()))
    for number, text in enumerate(["", *TEXTS[100:], ""]):
        (folder / f"c{number:02}.txt").write_text(text)
    return sorted(map(str, folder.iterdir()))


def outputs(prefix) -> list[bytes]:
    """The three files, and nothing else may be there."""
    paths = sorted(prefix.parent.glob(f"{prefix.name}.*"))
    assert [path.name.removeprefix(prefix.name) for path in paths] == [".bin", ".idx", ".meta.json"]
    return [path.read_bytes() for path in paths]


def killed_after(options, events, counted):
    """Run in a child that kills itself at the `events`-th function call, Python's or C's; None: count them."""
    seen = 0

    def count(*_):
        nonlocal seen
        seen += 1
        if seen == events:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    preprocess.preprocess(options)
    sys.setprofile(None)
    counted.value = seen


def in_child(*arguments) -> int:
    process = multiprocessing.get_context("fork").Process(target=killed_after, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


@settings(deadline=None, max_examples=12)
@given(moments=st.lists(st.floats(0, 1), min_size=1, max_size=3), seed=st.sampled_from([None, 7]))
def test_killed_at_any_call(tmp_path_factory, small_shards, tokenizer_path, corpus, moments, seed):
    folder = tmp_path_factory.mktemp("killed")
    counted = multiprocessing.Value("q")
    whole = Options(corpus, tokenizer_path, str(folder / "whole"), 1, shuffle_seed=seed)
    assert in_child(whole, None, counted) == 0
    options = Options(corpus, tokenizer_path, str(folder / "killed"), 1, shuffle_seed=seed)
    for moment in moments:
        if in_child(options, max(1, int(moment * counted.value)), counted) != -signal.SIGKILL:
            break
        idx = folder / "killed.idx"
        assert not idx.exists() or idx.read_bytes() == (folder / "whole.idx").read_bytes()
    preprocess.preprocess(options)
    assert outputs(folder / "killed") == outputs(folder / "whole")


def test_a_resumed_run_does_not_start_anew(tmp_path, small_shards, tokenizer_path, corpus, monkeypatch):
    options, added = Options(corpus, tokenizer_path, str(tmp_path / "d"), 1), []
    add = IndexedWriter.add

    def stop_at_ten(self, tokens, lengths):
        added.append(len(lengths))
        if len(added) == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, tokens, lengths)
    monkeypatch.setattr(IndexedWriter, "add", stop_at_ten)
    with pytest.raises(preprocess.NgptError, match=r"the disk is full; the finished part is kept in .*d\.partial") as caught:
        preprocess.preprocess(options)
    assert caught.value.exit_code == 1
    added.append(0)
    preprocess.preprocess(options)
    assert sum(added[11:]) < len([text for text in TEXTS if text]) - 20
    monkeypatch.undo()
    whole = Options(corpus, tokenizer_path, str(tmp_path / "whole"), 1)
    preprocess.preprocess(whole)
    assert outputs(tmp_path / "d") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("suffix", [".bin", ".meta.json", ".idx"])
def test_stopped_between_two_renames(tmp_path, small_shards, tokenizer_path, corpus, monkeypatch, seed, suffix):
    replace = os.replace

    def stop(source, target):
        if str(target).endswith(f"/d{suffix}"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)
    options = Options(corpus, tokenizer_path, str(tmp_path / "d"), 1, shuffle_seed=seed)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(preprocess.NgptError, match="Input/output error"):
            preprocess.preprocess(options)
    assert not (tmp_path / "d.idx").exists()
    preprocess.preprocess(options)
    preprocess.preprocess(Options(corpus, tokenizer_path, str(tmp_path / "whole"), 1, shuffle_seed=seed))
    assert outputs(tmp_path / "d") == outputs(tmp_path / "whole")


def start(arguments, **options):
    command = [sys.executable, "-m", "data_tools", "preprocess", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)


@pytest.mark.heavy
def test_killed_with_workers_at_random_times(tmp_path, tokenizer_path, source_texts):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in source_texts * 40))
    common = "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer_path, "--workers", 2, "--output"
    began = time.monotonic()
    assert start([*common, tmp_path / "whole"]).wait(200) == 0
    length, chosen = time.monotonic() - began, random.Random(0)
    for _ in range(4):
        process = start([*common, tmp_path / "d"], start_new_session=True)
        time.sleep(chosen.uniform(0.3, 1.0) * length)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert start([*common, tmp_path / "d"]).wait(200) == 0
    assert outputs(tmp_path / "d") == outputs(tmp_path / "whole")


def test_a_file_that_may_not_grow_is_told_in_a_line(tmp_path, tokenizer_path, source_texts):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in source_texts))
    arguments = "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer_path, "--output", tmp_path / "d", "--workers", 1
    limit = 20_000
    process = start(arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, errors = process.communicate()
    assert process.returncode == 1 and "Traceback" not in errors
    assert "File too large; the finished part is kept in" in errors
    assert start(arguments).wait(60) == 0 and (tmp_path / "d.idx").exists()


def test_a_killed_worker_is_told_in_a_line(tmp_path, small_shards, tokenizer_path, corpus, run, monkeypatch):
    def die(_):
        os.kill(os.getpid(), signal.SIGKILL)
    arguments = "preprocess", "--input", *corpus, "--tokenizer", tokenizer_path, "--output", tmp_path / "d", "--workers", 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_tools.encode.Encoder.__call__", lambda *_: die(_))
        outcome = run(*arguments)
    assert outcome.code == 1 and "a worker process was ended from outside" in outcome.err and "Traceback" not in outcome.err
    assert run(*arguments).code == 0


@pytest.fixture()
def unfinished(tmp_path, small_shards, tokenizer_path, corpus, monkeypatch):
    """Arguments of a run that stopped half-way."""
    with monkeypatch.context() as patch:
        patch.setattr(IndexedWriter, "finish", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(preprocess.NgptError, match="Input/output error"):
            preprocess.preprocess(Options(corpus, tokenizer_path, str(tmp_path / "d"), 1))
    return ["preprocess", "--input", *corpus, "--tokenizer", tokenizer_path, "--output", tmp_path / "d"]


def test_other_arguments_over_unfinished_work_are_refused(tmp_path, unfinished, run):
    outcome = run(*unfinished, "--shuffle_seed", 1)
    assert outcome.code == 2 and "unfinished work with another shuffle_seed" in outcome.err
    assert run(*unfinished, "--workers", 1).code == 0
    assert "nothing to do" in run(*unfinished, "--workers", 2).out
    outcome = run(*unfinished, "--shuffle_seed", 1)
    assert outcome.code == 2 and "d.idx exists, made from other input or with other options" in outcome.err


def test_a_changed_input_file_is_refused(tmp_path, unfinished, corpus, run):
    before = os.stat(corpus[0])
    os.utime(corpus[0], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    outcome = run(*unfinished)
    os.utime(corpus[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert outcome.code == 2 and "unfinished work with another input" in outcome.err


def test_two_at_once_are_refused(tmp_path, unfinished, tokenizer_path, corpus, run):
    script = ("import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
              "print('held', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", script, tmp_path / "d.partial" / "lock"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    outcome = run(*unfinished)
    other.communicate()
    assert outcome.code == 2 and "another process writes it" in outcome.err
    assert run(*unfinished).code == 0
