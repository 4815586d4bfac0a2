"""lm-eval's tasks on a model, from files on this machine, against numbers worked out by hand from the module."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from megatron_ngpt import cli
from megatron_ngpt.errors import ConfigError, TaskError
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.parallel.grid import make_grid
from tests.checkpoint.trained import likeliest
from tests.inference.lab import COMMON, CONTEXT, QUESTIONS, TASKS, TEXTS, written
from tests.on_ranks import on_ranks


def nats(module, context, continuation):
    """Logits [tokens, V] that predict a continuation's ids, from the whole module at once, and the sum of their log-probabilities."""
    with torch.no_grad():
        logits = module(torch.tensor([context + continuation]))[0, len(context) - 1 : -1].double()
    return logits, torch.log_softmax(logits, -1).gather(1, torch.tensor(continuation).unsqueeze(1)).sum().item()


def log_likelihoods(module, context, continuation):
    """(sum of log-probabilities, greedy) of the ids of a continuation."""
    logits, found = nats(module, context, continuation)
    return found, bool((likeliest(logits) == torch.tensor(continuation)).all())


def pair_ids(tokenizer, context, continuation):
    """Ids as lm-eval splits them: those of the whole, from where the context's own end."""
    whole, start = tokenizer.encode(context + continuation).tolist(), len(tokenizer.encode(context))
    return whole[:start], whole[start:]


def rolling(module, tokenizer, text):
    """The log-likelihood of a text, its first window after the end of a document, the last one as far right as possible."""
    tokens, total = tokenizer.encode(text).tolist(), 0.0
    for start in range(0, len(tokens), CONTEXT):
        stop = min(start + CONTEXT, len(tokens))
        before = [tokenizer.eos_id, *tokens[:start]][-(CONTEXT + 1 - (stop - start)) :]
        total += log_likelihoods(module, before, tokens[start:stop])[0]
    return total


def harness_model(run, batch=3, grid=None):
    from megatron_ngpt.inference.harness import HarnessModel

    return HarnessModel(load_model(run, grid=grid), batch)


def asked(*arguments):
    return SimpleNamespace(args=arguments)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_likelihoods(lab, batch):
    """Shared contexts, answers of different length, an empty context, one too long, and one that is greedy."""
    pairs = [(entry["question"], choice) for entry in QUESTIONS for choice in entry["choices"]]
    pairs += [("", "import os"), ("x " * 200, "yes"), ("trailing space ", "moved")]
    found = harness_model(lab.run, batch).loglikelihood([asked(*pair) for pair in pairs])
    for (context, continuation), (likelihood, greedy) in zip(pairs, found, strict=True):
        spaces = len(context) - len(context.rstrip())  # which lm-eval counts to the continuation
        before, then = pair_ids(lab.tokenizer, context.rstrip(), context[len(context) - spaces :] + continuation)
        before = (before or [lab.tokenizer.eos_id])[-(CONTEXT + 1 - len(then)) :]
        assert (pytest.approx(likelihood, abs=1e-4), greedy) == log_likelihoods(lab.module, before, then)


def greedy_or_not(run, grid=None):
    """What is said of five ids that are the likeliest each time, of the same with the last or the first one changed, and of none."""
    model = harness_model(run, 8, grid)
    context = model.tok_encode("import os")
    module = load_model(run).module
    ids = list(context)
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(likeliest(module(torch.tensor([ids]))[0, -1])))
    greedy = ids[len(context) :]
    answers = [greedy, [*greedy[:-1], greedy[-1] ^ 1], [greedy[0] ^ 1, *greedy[1:]], greedy[:1], []]
    return [is_greedy for _, is_greedy in model._loglikelihood_tokens([(None, context, answer) for answer in answers])]


def test_greedy_answers_are_known(lab):
    assert greedy_or_not(lab.run) == [True, False, False, True, True]


def test_likelihood_of_whole_texts(lab):
    assert max(len(lab.tokenizer.encode(text)) for text in TEXTS) > 2 * CONTEXT
    found = harness_model(lab.run).loglikelihood_rolling([asked(text) for text in [*TEXTS, ""]])
    assert found == pytest.approx([rolling(lab.module, lab.tokenizer, text) for text in TEXTS] + [0.0], abs=1e-3)


def test_continuations(lab):
    """Requests with other options, and a context that is cut on the left so that the continuation fits."""
    greedy, short = {"until": ["e", "\n"], "max_gen_toks": 12}, {"until": "(", "max_gen_toks": 12, "do_sample": False}
    questions = [(entry["question"], options) for entry in QUESTIONS for options in (greedy, short)] + [("x " * 100, greedy)]
    found = harness_model(lab.run).generate_until([asked(*question) for question in questions])
    kept = lab.tokenizer.decode(lab.tokenizer.encode("x " * 100)[-(CONTEXT - 12) :])
    wanted = [written(lab.module, lab.tokenizer, question, options["until"]) for question, options in questions[:-1]]
    assert found == [*wanted, written(lab.module, lab.tokenizer, kept)]
    options = {"do_sample": True, "max_gen_toks": 12}
    drawn = [harness_model(lab.run).generate_until([asked("x", {**options, "temperature": t})])[0] for t in (1.0, 5.0)]
    assert drawn[0] != drawn[1]
    assert harness_model(lab.run).generate_until([asked("x", options)])[0] == drawn[0]


def test_an_answer_longer_than_the_context_is_scored_in_windows_and_ends_nothing(lab, capsys):
    model, context = harness_model(lab.run), [5, 6]
    answer = [7 + n % 20 for n in range(2 * CONTEXT + 3)]
    (likelihood, greedy), short = model._loglikelihood_tokens([(None, context, answer), (None, context, answer[:3])])
    total = nats(lab.module, context[-1:], answer[:CONTEXT])[1]
    total += nats(lab.module, answer[CONTEXT - 1 : CONTEXT], answer[CONTEXT : 2 * CONTEXT])[1]
    total += nats(lab.module, answer[CONTEXT + 2 : 2 * CONTEXT], answer[2 * CONTEXT :])[1]
    assert likelihood == pytest.approx(total, abs=1e-3) and not greedy
    assert short[0] == pytest.approx(nats(lab.module, context, answer[:3])[1], abs=1e-4)
    assert capsys.readouterr().err == f"answers longer than the model's context of {CONTEXT} tokens are scored in windows of it\n"


@pytest.mark.parametrize("asked_for", [{}, {"max_gen_toks": CONTEXT}, {"max_new_tokens": 10_000}])
def test_more_tokens_than_the_context_has_leave_half_of_it_to_the_question(lab, capsys, asked_for):
    """256, lm-eval's default, among them; what is written is what half the context as `max_gen_toks` gives."""
    questions = ["import", "x " * 100]
    half = [asked(question, {"max_gen_toks": CONTEXT // 2, "until": ["\n"]}) for question in questions]
    more = [asked(question, {**asked_for, "until": ["\n"]}) for question in questions]
    assert harness_model(lab.run).generate_until(more) == harness_model(lab.run).generate_until(half)
    assert capsys.readouterr().err.count(f"at most {CONTEXT // 2} tokens are written in a context of {CONTEXT}") == 1


def test_top_k_is_honoured(lab):
    drawn = {"do_sample": True, "temperature": 5.0, "max_gen_toks": 12}
    texts = [harness_model(lab.run).generate_until([asked("x", {**drawn, **more})])[0]
             for more in ({}, {"top_k": 1}, {"top_k": lab.tokenizer.size}, {"top_k": 3, "top_p": 0.01})]
    greedy = harness_model(lab.run).generate_until([asked("x", {"max_gen_toks": 12})])[0]
    assert texts[0] != greedy and texts[1] == greedy and texts[2] == texts[0] and texts[3] == greedy


@pytest.mark.parametrize(("options", "said"), [
    ({"num_beams": 4}, "generation_kwargs num_beams = 4: not done here; what is: until, max_gen_toks"),
    ({"repetition_penalty": 1.2}, "generation_kwargs repetition_penalty = 1.2: not done here"),
    ({"typical_p": 0.9}, "typical_p = 0.9"), ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size = 3"),
    ({"max_length": 20}, "max_length = 20"), ({"something_new": "x"}, "something_new = x"),
    ({"max_gen_toks": 0}, "max_gen_toks = 0: must be at least 1"), ({"temperature": "hot"}, "could not convert string to float"),
    ({"do_sample": True, "temperature": 1.0, "top_p": 3}, "top_p in 0 to 1"), ({"top_k": -1}, "top_k must be at least 0"),
])
def test_what_is_not_done_is_refused(options, said):
    from megatron_ngpt.inference.harness_options import read_options

    with pytest.raises(ConfigError, match=f"--tasks t: generation_kwargs.*{said.removeprefix('generation_kwargs ')}"):
        read_options(options, "--tasks t")


def test_what_asks_for_nothing_is_taken():
    from megatron_ngpt.inference.harness_options import read_options

    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "top_k": None, "length_penalty": None, "use_cache": True, "until": "x"}
    options = read_options(neutral, "t")
    assert (options.until, options.max_tokens, options.sampling.temperature, options.sampling.top_k) == (["x"], 256, 0.0, 0)


def test_a_failure_within_the_model_is_no_tasks_failure(lab, own_tasks_alone, monkeypatch):
    """Other ranks may wait for this one in a collective of the model's, where nobody can tell them."""
    from megatron_ngpt.inference import harness, tasks

    def broken(*_):
        raise RuntimeError("out of memory")

    found, loaded = tasks.Tasks(["tiny_choice"], lab.directory), load_model(lab.run)
    monkeypatch.setattr(harness, "score", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        found.evaluate(loaded, None, 8, errors=False)
    monkeypatch.setattr(found.load()["tasks"]["tiny_choice"], "process_results", broken)
    monkeypatch.setattr(harness, "score", lambda _, pairs: [harness.Scored(-1.0, True)] * len(pairs))
    with pytest.raises(TaskError, match=r"^tasks: RuntimeError: out of memory$"):
        found.evaluate(loaded, None, 8, errors=False)


def test_a_task_that_asks_too_much_is_refused_before_the_model_works(lab, own_tasks_alone, monkeypatch, capsys, tmp_path):
    from megatron_ngpt.inference import harness

    head = COMMON.format(data=lab.directory / "questions.jsonl", cache=tmp_path)
    task = TASKS["tiny_written"].replace("do_sample: false", "num_beams: 4")
    (tmp_path / "beams.yaml").write_text(f"task: beams\n{head}{task}")
    (tmp_path / "first.yaml").write_text(f"task: first\n{head}{TASKS['tiny_choice']}")
    monkeypatch.setattr(harness, "score", lambda *_: pytest.fail("the model works"))
    monkeypatch.setattr(sys, "argv", ["ngpt", "harness", str(lab.run), "--tasks", "first,beams", "--include_path", str(tmp_path)])
    assert cli.main() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("--tasks beams: generation_kwargs num_beams = 4: not done here; what is: ")


def measured(run, directory, grid=None):
    """lm-eval's results of the three tasks, by name; on ranks that it gives none, None."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(directory), include_defaults=False)
    model = harness_model(run, grid=grid)
    count, score = [], model.loglikelihood
    model.loglikelihood = lambda requests: count.append(len(requests)) or score(requests)
    results = simple_evaluate(model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)
    return results and {
        "asked": sum(count),
        "choice": results["results"]["tiny_choice"]["acc,none"],
        "text": results["results"]["tiny_text"]["bits_per_byte,none"],
        "written": results["results"]["tiny_written"]["exact_match,none"],
    }


def by_hand(lab, data_ranks=1):
    right = 0
    for entry in QUESTIONS:
        scores = [log_likelihoods(lab.module, *pair_ids(lab.tokenizer, entry["question"], choice))[0] for choice in entry["choices"]]
        right += scores.index(max(scores)) == entry["answer"]
    nats = -sum(rolling(lab.module, lab.tokenizer, text) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    asked = sum(len(entry["choices"]) for entry in QUESTIONS) // data_ranks
    bits = nats / size / math.log(2)
    return {"asked": asked, "choice": right / len(QUESTIONS), "text": pytest.approx(bits, rel=1e-5), "written": 0.75}


def test_lm_evals_tasks(lab):
    assert measured(lab.run, lab.directory) == by_hand(lab)


def measured_on_ranks(run, directory, tensor, pipeline):
    grid = make_grid(tensor=tensor, pipeline=pipeline)
    return greedy_or_not(run, grid), measured(run, directory, grid)


@pytest.mark.parametrize(("ranks", "tensor", "pipeline"), [(4, 2, 1), (2, 1, 2)])
def test_on_ranks_that_share_the_model_and_the_documents(lab, ranks, tensor, pipeline):
    found = on_ranks(ranks, measured_on_ranks, lab.run, lab.directory, tensor, pipeline, seconds=200)
    assert found[0][1] == by_hand(lab, ranks // (tensor * pipeline))
    assert all(greedy == [True, False, False, True, True] for greedy, _ in found)
